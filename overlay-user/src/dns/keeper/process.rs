//! The keeper's process: how it starts, detaches and ends.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use nix::{
    libc,
    unistd::{ForkResult, fork},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Resource, Rlimit, getrlimit, setrlimit, setsid},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    client::{Connection, KeeperError},
    protocol::Request,
    server::Server,
};

/// Starts a keeper that listens on `path` and outlives this process; returns when it listens.
pub(super) fn start(path: &Path) -> io::Result<()> {
    // This very program, also when its file was replaced by a newer one.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("overlay").arg("keep-sockets").arg(path).current_dir("/");
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("overlay: ");
    Err(io::Error::other(if said.is_empty() { output.status.to_string() } else { said.into() }))
}

/// Ends the keeper that listens on `path` and waits for its end. Returns its process id; `None`
/// when there is none.
///
/// # Errors
/// [`KeeperError::Broken`] when it does not end.
pub(super) fn quit(path: &Path) -> Result<Option<u32>, KeeperError> {
    let connection = match Connection::open(path) {
        Ok(connection) => connection,
        Err(KeeperError::Unreachable { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let quit = connection.ask(&Request::Quit {}, &[]).and_then(|_| connection.wait_for_end());
    if quit.is_err() {
        // One that does not understand or is stuck has no say in this.
        connection.replace();
    }
    Ok(Some(connection.pid.as_raw_nonzero().get().cast_unsigned()))
}

/// What `overlay keep-sockets` does: detaches from whoever started it, and keeps sockets. Returns
/// as soon as the detached process listens; that one never returns.
///
/// Must be called while this process has one thread and has opened nothing.
///
/// # Errors
/// Why it cannot listen on `path`.
pub fn keep_sockets(path: &Path) -> anyhow::Result<ExitCode> {
    close_inherited();
    if Connection::open(path).is_ok() {
        // Two would each have a part of the sockets.
        return Ok(ExitCode::SUCCESS);
    }
    let (listens, tell) = pipe_with(PipeFlags::CLOEXEC).context("a pipe")?;
    // SAFETY: this process has a single thread, so the child may do whatever its parent may.
    if let ForkResult::Parent { .. } = unsafe { fork() }.context("fork")? {
        drop(tell);
        let listens = File::from(listens).read_exact(&mut [0]).is_ok();
        // Otherwise the child has said why.
        return Ok(if listens { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    drop(listens);
    // Out of the session and the process group that a terminal's or a shell's signals go to.
    setsid().context("setsid")?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let mut server = Server::listen(path, most_descriptors())
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    // The starter waits for this byte; if it is gone, the sockets are kept all the same.
    let _ = File::from(tell).write_all(&[1]);
    server.run();
    // Its connections are closed by the end of the process and not before it: whoever has told it
    // to quit waits for that.
    std::process::exit(0)
}

/// Closes all descriptors but standard input, output and error: a lock of the daemon's would be
/// held for ever, and whoever reads its log from a pipe would wait for ever.
fn close_inherited() {
    // SAFETY: nothing in this process has opened anything yet, so no descriptor above 2 is owned by
    // a value. Kernel 5.9 and later have the call; the daemon's are closed on exec in any case.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// How many descriptors this process may have, after it has raised that as far as it can.
fn most_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
