//! The life of a server: it accepts, and on SIGTERM it finishes the open requests, as a
//! well-behaved server does.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use super::Listen;

static STOPPING: AtomicBool = AtomicBool::new(false);

/// Connections that are still open this long after SIGTERM are cut.
const GRACE: Duration = Duration::from_secs(8);

extern "C" fn stop(_signal: nix::libc::c_int) {
    STOPPING.store(true, Ordering::Relaxed);
}

/// Whether SIGTERM or SIGINT has arrived.
pub fn stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

/// From now on SIGTERM and SIGINT make [`stopping`] true.
pub fn stop_on_signals() -> anyhow::Result<()> {
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("a signal handler")?;
    }
    Ok(())
}

/// Does nothing until SIGTERM.
pub fn pause() -> anyhow::Result<ExitCode> {
    stop_on_signals()?;
    println!("listening: for SIGTERM only");
    while !stopping() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(ExitCode::SUCCESS)
}

/// Accepts until SIGTERM, a thread per connection; then lets open connections end.
///
/// Says `listening: ADDRESS` once it does: the harness waits for that line.
pub fn accept(
    listen: Listen,
    handle: impl Fn(TcpStream) + Send + Sync + 'static,
) -> anyhow::Result<ExitCode> {
    stop_on_signals()?;
    let address = SocketAddr::from(listen);
    let listener = TcpListener::bind(address).with_context(|| format!("TCP port {address}"))?;
    listener.set_nonblocking(true)?;
    println!("listening: {}/tcp", listener.local_addr()?);
    let handle = Arc::new(handle);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        // Read before accepting: what arrived before SIGTERM is still accepted.
        let last = stopping();
        while let Ok((stream, _)) = listener.accept() {
            let (handle, open) = (Arc::clone(&handle), Arc::clone(&open));
            open.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                // The listener's O_NONBLOCK is not inherited on Linux, but be explicit.
                let _ = stream.set_nonblocking(false);
                handle(stream);
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
        if last {
            break;
        }
        wait_readable(&listener, Duration::from_millis(100))?;
    }
    drop(listener);
    let deadline = Instant::now() + GRACE;
    while open.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until something can be read or accepted, the time is over or a signal comes.
pub fn wait_readable(socket: &impl std::os::fd::AsFd, limit: Duration) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("poll"),
    }
}
