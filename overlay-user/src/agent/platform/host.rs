//! The agent's interface to its host. It consists of traits, so that a unit test can have several
//! hosts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::probe::Checked;
use crate::{
    agent::error::AgentError,
    datapath::DatapathError,
    model::{ClusterState, Id, Probe},
};

/// The namespace that a path means at the moment. Later it may mean another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Device of the nsfs.
    pub device: u64,
    /// Inode there.
    pub inode: u64,
}

/// The agent's requests to its host, besides netlink and BPF.
pub trait Host: Send + Sync + 'static {
    /// Which network namespace is at a path.
    ///
    /// # Errors
    /// `LinkError::NoNamespace` when there is none; also for the host's own.
    fn namespace(&self, netns: &Path) -> Result<NamespaceId, AgentError>;

    /// Cookie of the host's network namespace.
    ///
    /// # Errors
    /// The system's error.
    fn netns_cookie(&self) -> Result<u64, AgentError>;

    /// Cookie of another network namespace.
    ///
    /// # Errors
    /// `LinkError::NoNamespace` when there is none at the path, or the system's error.
    fn netns_cookie_of(&self, netns: &Path) -> Result<u64, AgentError>;

    /// Cookies of the TCP sockets of one network namespace that connect, are connected, or were a
    /// moment ago. `None` means the host's namespace.
    ///
    /// # Errors
    /// The system's error.
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

    /// Detaches all programs and removes the pins. Returns the removed objects.
    ///
    /// # Errors
    /// [`DatapathError`] names the pin that could not be removed.
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

    /// Stops serving all containers but these, as an earlier daemon may have left them.
    fn retain(&self, containers: BTreeSet<Id>) -> BoxFuture<'_, ()>;

    /// Ends the processes that would outlive this daemon. Returns a description of them.
    ///
    /// # Errors
    /// The processes that do not end.
    fn end(&self) -> BoxFuture<'_, Result<Option<String>, AgentError>>;

    /// Begins to answer; before that queries wait.
    fn answer(&self);

    /// Answers from this state from now on.
    fn show(&self, state: &Arc<ClusterState>);
}
