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

/// Starts a keeper that listens on `path` and outlives this process. Returns once it listens.
pub(super) fn start(path: &Path) -> io::Result<()> {
    // Runs the same program even if its file was replaced by a newer one.
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

/// Ends the keeper that listens on `path` and waits for its end. Returns its process id, or `None`
/// if there was none.
///
/// # Errors
/// [`KeeperError::Broken`] if it does not end.
pub(super) fn quit(path: &Path) -> Result<Option<u32>, KeeperError> {
    let connection = match Connection::open(path) {
        Ok(connection) => connection,
        Err(KeeperError::Unreachable { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let quit = connection.ask(&Request::Quit {}, &[]).and_then(|_| connection.wait_for_end());
    if quit.is_err() {
        // A keeper that does not understand the request or hangs is ended by force.
        connection.replace();
    }
    Ok(Some(connection.pid.as_raw_nonzero().get().cast_unsigned()))
}

/// Implements `overlay keep-sockets`: detaches from the calling process and keeps sockets. Returns
/// once the detached process listens. The detached process itself never returns.
///
/// Must be called while this process has one thread and has opened no files.
///
/// # Errors
/// The reason why it cannot listen on `path`.
pub fn keep_sockets(path: &Path) -> anyhow::Result<ExitCode> {
    close_inherited();
    if Connection::open(path).is_ok() {
        // With two keepers, each would have only some of the sockets.
        return Ok(ExitCode::SUCCESS);
    }
    let (listens, tell) = pipe_with(PipeFlags::CLOEXEC).context("a pipe")?;
    // SAFETY: this process has a single thread, so the child may do whatever its parent may.
    if let ForkResult::Parent { .. } = unsafe { fork() }.context("fork")? {
        drop(tell);
        let listens = File::from(listens).read_exact(&mut [0]).is_ok();
        // On failure, the child has already reported the reason.
        return Ok(if listens { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    drop(listens);
    // Leaves the session and the process group, so that signals of a terminal or a shell do not
    // reach it.
    setsid().context("setsid")?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let mut server = Server::listen(path, most_descriptors())
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    // The calling process waits for this byte. If that process is gone, the keeper still keeps
    // sockets.
    let _ = File::from(tell).write_all(&[1]);
    server.run();
    // The connections must close at the end of the process and not earlier, because the process
    // that sent the quit request waits for that.
    std::process::exit(0)
}

/// Closes all descriptors but standard input, output and error. Otherwise the keeper would hold a
/// lock of the daemon for ever, and a process that reads the daemon's log from a pipe would wait
/// for ever.
fn close_inherited() {
    // SAFETY: nothing in this process has opened anything yet, so no descriptor above 2 is owned by
    // a value. Kernel 5.9 and later have the call; the daemon's are closed on exec in any case.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Raises the limit of descriptors as far as possible and returns it.
fn most_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
