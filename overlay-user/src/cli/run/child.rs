//! The child of `overlay run`, until it becomes the command.
//!
//! It is a process of one thread (nothing here may start one), because a process with several
//! cannot change its namespaces as a whole.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{
    control::{Etc, Failure, FromChild, FromParent},
    files,
};
use crate::cli::error::usage_error;

/// The half of `overlay run` that becomes the command.
#[derive(Debug, Args)]
pub(in crate::cli) struct ChildArgs {
    /// Descriptor of the socket to the parent
    #[arg(long)]
    control: RawFd,
    /// Namespace to join instead of making one
    #[arg(long)]
    netns: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Makes the namespaces, waits for the parent and becomes the command.
pub(in crate::cli) fn run(args: &ChildArgs) -> anyhow::Result<ExitCode> {
    let mut control = take_control(args.control)?;
    let failure = match prepare(args, &mut control) {
        Ok(etc) => become_command(args, &etc),
        Err(error) => Failure::ours(&error),
    };
    let status = failure.status;
    // Without a parent no process reads the message.
    let _ = send(&mut control, &FromChild::Failed(failure));
    Ok(ExitCode::from(status))
}

/// The socket that the parent gave us. It closes when the command is executed.
fn take_control(number: RawFd) -> anyhow::Result<UnixStream> {
    let not_ours = || {
        usage_error(
            format!("descriptor {number} is no socket of `overlay run`"),
            "this command is for `overlay run` itself; use that",
        )
    };
    if number < 3 {
        return Err(not_ours());
    }
    // SAFETY: only used for one call that fails if the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| not_ours())?;
    // SAFETY: it is open, and inherited for us alone: nothing else in this process knows it.
    Ok(unsafe { UnixStream::from_raw_fd(number) })
}

fn send(control: &mut UnixStream, message: &FromChild) -> anyhow::Result<()> {
    control.write_all((serde_json::to_string(message)? + "\n").as_bytes())?;
    Ok(())
}

/// Makes the namespaces and waits for the word to go.
fn prepare(args: &ChildArgs, control: &mut UnixStream) -> anyhow::Result<Etc> {
    enter_namespaces(args.netns.as_deref())?;
    send(control, &FromChild::Ready)?;
    let mut line = String::new();
    BufReader::new(control).read_line(&mut line)?;
    let FromParent::Go(etc) = serde_json::from_str(&line).context("the parent went away")?;
    Ok(etc)
}

fn enter_namespaces(netns: Option<&Path>) -> anyhow::Result<()> {
    let private = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    let refused = "make namespaces; this needs root (CAP_SYS_ADMIN)";
    match netns {
        None => {
            unshare(private | CloneFlags::CLONE_NEWNET).context(refused)?;
            loopback_up().context("bring up lo")?;
        }
        Some(path) => {
            let shown = path.display();
            let file = File::open(path)
                .with_context(|| format!("the namespace {shown} of the container is gone"))?;
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {shown}"))?;
            unshare(private).context(refused)?;
        }
    }
    Ok(())
}

/// Brings up `lo` of this namespace (SIOCSIFFLAGS, netdevice(7)).
fn loopback_up() -> std::io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all fields of ifreq are integers, arrays of them and pointers, for which zero is
    // valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: the request is a whole ifreq that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Becomes the command. Returns only on an error.
fn become_command(args: &ChildArgs, etc: &Etc) -> Failure {
    let prepared = etc
        .hostname
        .as_ref()
        .map_or(Ok(()), |name| nix::unistd::sethostname(name).context("set the host name"))
        .and_then(|()| Ok(files::show(&etc.files)?));
    if let Err(error) = prepared {
        return Failure::ours(&error);
    }
    exec(&args.command)
}

/// Executes a command in place of this process. Returns only on an error.
pub(super) fn exec(command: &[OsString]) -> Failure {
    let error = std::process::Command::new(&command[0]).args(&command[1..]).exec();
    Failure::exec(&command[0], &error)
}
