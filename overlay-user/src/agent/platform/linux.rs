//! The host that this process runs on.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;

use super::{
    Host, NamespaceId, boot_id, local_ports, namespace_at,
    probe::{self, Checked},
};
use crate::{
    agent::error::AgentError,
    datapath::{BpfDatapath, DatapathError, host},
    link::{netns::in_netns, tcp_cookies},
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
