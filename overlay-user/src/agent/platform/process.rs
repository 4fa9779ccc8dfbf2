//! Processes that are told apart, although their numbers are used again.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use serde::{Deserialize, Serialize};

/// A process. Its number is given again when it has ended; its start time tells which process is
/// meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

/// The process that has this number now; `None` when there is none.
pub fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let started = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(Process { pid, started })
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// `NotFound` when it has ended already or its number belongs to another process by now.
pub fn pidfd(process: Process) -> io::Result<OwnedFd> {
    use nix::libc;
    let ended = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
    // SAFETY: pidfd_open takes two integers and returns a descriptor of ours or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(process.pid), 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(if error.raw_os_error() == Some(libc::ESRCH) { ended() } else { error });
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // From here on the process id is stable: it names the process of the descriptor.
    if self::process(process.pid) == Some(process) { Ok(fd) } else { Err(ended()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_number_and_start_time() {
        let own = process(std::process::id()).expect("this process");
        assert!(pidfd(own).is_ok());
        let reused = Process { started: own.started + 1, ..own };
        assert_eq!(pidfd(reused).expect_err("another one").kind(), io::ErrorKind::NotFound);
    }
}
