//! The host that this process runs on.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;

use super::{
    host::{Host, NamespaceId},
    probe::{self, Checked},
};
use crate::{
    agent::error::AgentError,
    datapath::{BpfDatapath, DatapathError, host},
    link::{LinkError, netns::in_netns, tcp_cookies},
    model::Probe,
};

/// The host that this process runs on.
pub struct LinuxHost {
    pin_dir: PathBuf,
}

impl LinuxHost {
    /// The host, with its pins in `pin_dir`.
    pub const fn new(pin_dir: PathBuf) -> Self {
        Self { pin_dir }
    }
}

impl Host for LinuxHost {
    fn namespace(&self, netns: &Path) -> Result<NamespaceId, AgentError> {
        namespace_at(netns)
    }

    fn netns_cookie(&self) -> Result<u64, AgentError> {
        Ok(host::netns_cookie()?)
    }

    fn netns_cookie_of(&self, netns: &Path) -> Result<u64, AgentError> {
        Ok(in_netns(netns, host::netns_cookie)??)
    }

    fn tcp_sockets(&self, netns: Option<&Path>) -> Result<BTreeSet<u64>, AgentError> {
        Ok(match netns {
            Some(path) => in_netns(path, tcp_cookies)??,
            None => tcp_cookies()?,
        })
    }

    fn cgroup2(&self) -> Option<PathBuf> {
        host::cgroup2_mount()
    }

    fn local_ports(&self) -> Option<(u16, u16)> {
        local_ports()
    }

    fn boot_id(&self) -> String {
        boot_id()
    }

    fn probe<'a>(
        &'a self,
        backend: &'a Checked,
        probe: &'a Probe,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(probe::probe(backend, probe))
    }

    fn unload(&self) -> Result<Vec<String>, DatapathError> {
        BpfDatapath::unload(&self.pin_dir)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
