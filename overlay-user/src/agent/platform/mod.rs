//! The host around the agent: namespaces, processes, cgroups. Behind a trait, so that a unit test
//! can have several hosts.

mod linux;
mod names;
mod probe;

pub use linux::LinuxHost;
pub use names::ContainerNames;
pub use probe::Checked;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    agent::error::AgentError,
    datapath::DatapathError,
    link::LinkError,
    model::{ClusterState, Id, Probe},
};

/// Which namespace a path means at the moment: a path may later mean another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Device of the nsfs.
    pub device: u64,
    /// Inode there.
    pub inode: u64,
}

/// A process: its number is given again when it has ended, its start time tells which one is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

/// What the agent asks its host and neither netlink nor BPF answers.
pub trait Host: Send + Sync + 'static {
    /// Which network namespace is at a path.
    ///
    /// # Errors
    /// [`LinkError::NoNamespace`] when there is none; also for the host's own.
    fn namespace(&self, netns: &Path) -> Result<NamespaceId, AgentError>;

    /// Cookie of the host's network namespace.
    ///
    /// # Errors
    /// What the system said.
    fn netns_cookie(&self) -> Result<u64, AgentError>;

    /// Cookie of another network namespace.
    ///
    /// # Errors
    /// [`LinkError::NoNamespace`] when there is none at the path, or what the system said.
    fn netns_cookie_of(&self, netns: &Path) -> Result<u64, AgentError>;

    /// Cookies of the TCP sockets of a network namespace, `None` for the host's own: those that connect, are
    /// connected, or were a moment ago.
    ///
    /// # Errors
    /// What the system said.
    fn tcp_sockets(&self, netns: Option<&Path>) -> Result<BTreeSet<u64>, AgentError>;

    /// Where cgroup v2 is mounted.
    fn cgroup2(&self) -> Option<PathBuf>;

    /// First and last port that the kernel gives to sockets that ask for none; `None` when it does
    /// not say.
    fn local_ports(&self) -> Option<(u16, u16)>;

    /// Changes with every boot.
    fn boot_id(&self) -> String;

    /// Makes one health check of a backend of this host. Dropping it ends it.
    fn probe<'a>(
        &'a self,
        backend: &'a Checked,
        probe: &'a Probe,
    ) -> BoxFuture<'a, Result<(), String>>;

    /// Detaches all programs and removes the pins. Returns what was removed.
    ///
    /// # Errors
    /// [`DatapathError`] names the pin that resists.
    fn unload(&self) -> Result<Vec<String>, DatapathError>;
}

/// The DNS servers inside the containers' namespaces.
pub trait NameServers: Send + Sync + 'static {
    /// Serves names inside the namespace; calling it again changes nothing.
    fn ensure<'a>(
        &'a self,
        container: &'a Id,
        netns: &'a Path,
    ) -> BoxFuture<'a, Result<(), AgentError>>;

    /// Stops serving a container.
    fn remove(&self, container: &Id);

    /// Lets go of what an earlier daemon left for other containers than these.
    fn retain(&self, containers: BTreeSet<Id>) -> BoxFuture<'_, ()>;

    /// Ends what would outlive this daemon. Returns what that was.
    ///
    /// # Errors
    /// What does not end.
    fn end(&self) -> BoxFuture<'_, Result<Option<String>, AgentError>>;

    /// Begins to answer; before that queries wait.
    fn answer(&self);

    /// Answers from this state from now on.
    fn show(&self, state: &Arc<ClusterState>);
}

/// Which network namespace is at `path`, found by the file system alone.
///
/// # Errors
/// [`LinkError::NoNamespace`] when it does not exist or is no namespace; an error of its own for
/// the namespace of this process.
pub fn namespace_at(path: &Path) -> Result<NamespaceId, AgentError> {
    let missing = || AgentError::from(LinkError::NoNamespace(path.display().to_string()));
    let file = File::open(path).map_err(|_| missing())?;
    let nsfs = nix::sys::statfs::fstatfs(&file)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC);
    let metadata = file.metadata().map_err(|_| missing())?;
    if !nsfs {
        return Err(missing());
    }
    let found = NamespaceId { device: metadata.dev(), inode: metadata.ino() };
    let own = std::fs::metadata("/proc/self/ns/net").map_err(|_| missing())?;
    if found == (NamespaceId { device: own.dev(), inode: own.ino() }) {
        return Err(AgentError::Host(format!(
            "{} is the host's own network namespace, which is no endpoint: processes there reach \
             published ports as they are",
            path.display()
        )));
    }
    Ok(found)
}

/// The host's ports for sockets that ask for none (`net.ipv4.ip_local_port_range`), of the network
/// namespace of the calling thread.
pub fn local_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_ascii_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

/// The boot id; empty where /proc does not tell.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
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
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Only now does the number stand still: what it names is what the descriptor refers to.
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

    #[test]
    fn the_hosts_own_namespace_and_what_is_none_are_refused() {
        let own = namespace_at(Path::new("/proc/self/ns/net")).expect_err("the host's own");
        assert!(own.to_string().contains("host's own"), "{own}");
        for path in ["/proc/self/status", "/nowhere/at/all"] {
            let error = namespace_at(Path::new(path)).expect_err(path).to_string();
            assert!(error.contains("no network namespace") && error.contains(path), "{error}");
        }
    }
}
