//! The daemon of a host: follows the cluster's state and makes its kernel show it.
//!
//! ```text
//! follow  --state-->  reconcile: compile (pure) -> diff against the maps -> apply
//!                        ^ facts: links of attached containers, the host link, addresses
//! attach, detach --------+
//! ```
//! Everything is level-triggered: whoever changes the state or the facts wakes the reconciler,
//! which looks at both as they are then.

mod attach;
mod compile;
mod config;
mod control;
mod count;
mod daemon;
mod error;
mod events;
mod follow;
mod host;
mod leave;
mod platform;
mod reconcile;
mod run;
mod serve;
mod show;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32},
    },
};

pub use compile::{HOST_MODE, LocalFacts, compile, network_mtu};
pub use config::{AgentConfig, CONFIG_FORMAT, ConfigError, OUTSIDE_FLOWS, OUTSIDE_PORTS};
pub use control::{Control, Watch};

pub use daemon::daemon;
pub use error::AgentError;
pub use platform::{
    Host, NameServers, NamespaceId, Process, boot_id, local_ports, namespace_at, probe::Checked,
};
pub use serve::client::{Events, LocalClient};
use tokio::sync::{Notify, watch};

use self::{attach::containers::Containers, host::HostSetup, reconcile::Applied};
use crate::{
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Id},
    paths::Paths,
};

/// What an [`Agent`] is made of.
pub struct Parts<D, L> {
    /// Where the host keeps things.
    pub paths: Paths,
    /// What `init` or `join` decided.
    pub config: AgentConfig,
    /// The kernel's programs and maps.
    pub datapath: D,
    /// The kernel's interfaces.
    pub links: L,
    /// The managers.
    pub control: Arc<dyn Control>,
    /// The DNS servers of the containers.
    pub names: Arc<dyn NameServers>,
    /// The rest of the host.
    pub host: Arc<dyn Host>,
}

/// The agent of one host.
pub struct Agent<D, L> {
    paths: Paths,
    config: AgentConfig,
    datapath: D,
    links: L,
    control: Arc<dyn Control>,
    names: Arc<dyn NameServers>,
    host: Arc<dyn Host>,
    /// The last state heard of, from a manager or from the cache.
    state: watch::Sender<Option<Arc<ClusterState>>>,
    /// Whether a watch is running, that is, whether the state is live.
    connected: watch::Sender<bool>,
    facts: Mutex<LocalFacts>,
    applied: Mutex<Applied>,
    /// When flows of backends may be counted again; `None` before the first time.
    count_due: Mutex<Option<std::time::Instant>>,
    /// Whether addresses of backends that are gone are to be looked for.
    gone_due: AtomicBool,
    /// When sockets may be looked at again; `None` before the first time.
    sockets_due: Mutex<Option<std::time::Instant>>,
    /// How often sockets were looked at.
    looks: AtomicU32,
    /// Flows that draining backends have left here, by number.
    draining: Mutex<BTreeMap<u32, u64>>,
    /// Revision that the maps show.
    progress: watch::Sender<u64>,
    containers: Containers,
    setup: tokio::sync::Mutex<HostSetup>,
    /// Turns to make health checks.
    checks: tokio::sync::Semaphore,
    /// What is known of the host's setup, for [`crate::api::Status`].
    report: Mutex<host::Report>,
    /// Who watches the traffic.
    events: events::Hub,
    /// Failures not yet overcome, by what was being done.
    troubles: Mutex<BTreeMap<&'static str, String>>,
    wake: Notify,
    stop: watch::Sender<bool>,
    /// Held while the last state is written; true once this node has left and nothing may be.
    left: tokio::sync::Mutex<bool>,
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// An agent that does nothing yet; see [`Agent::start`].
    pub fn new(parts: Parts<D, L>) -> Arc<Self> {
        let Parts { paths, config, datapath, links, control, names, host } = parts;
        Arc::new(Self {
            containers: Containers::new(paths.containers(), host.boot_id()),
            paths,
            config,
            datapath,
            links,
            control,
            names,
            host,
            state: watch::Sender::new(None),
            connected: watch::Sender::new(false),
            facts: Mutex::default(),
            applied: Mutex::default(),
            count_due: Mutex::default(),
            // Backends may have gone while no daemon ran.
            gone_due: AtomicBool::new(true),
            sockets_due: Mutex::default(),
            looks: AtomicU32::new(0),
            draining: Mutex::default(),
            progress: watch::Sender::new(0),
            setup: tokio::sync::Mutex::default(),
            checks: tokio::sync::Semaphore::new(attach::health::AT_A_TIME),
            report: Mutex::default(),
            events: events::Hub::default(),
            troubles: Mutex::default(),
            wake: Notify::new(),
            stop: watch::Sender::new(false),
            left: tokio::sync::Mutex::default(),
        })
    }

    /// The last state heard of; an empty one before any.
    pub fn state(&self) -> Arc<ClusterState> {
        self.state.borrow().clone().unwrap_or_default()
    }

    /// The state, if it comes from a manager that answers.
    fn live_state(&self) -> Option<Arc<ClusterState>> {
        if *self.connected.borrow() { self.state.borrow().clone() } else { None }
    }

    fn node(&self) -> &Id {
        &self.config.node
    }

    /// Asks whoever runs the agent to end it, as after [`crate::api::LocalRequest::Leave`].
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the agent is asked to end.
    pub async fn stopped(&self) {
        // The sender lives as long as the agent: an error cannot happen.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Notes a failure to be shown until [`Agent::overcome`], and logs it when it is new.
    fn trouble(&self, doing: &'static str, what: impl ToString) {
        let what = what.to_string();
        let mut troubles = lock(&self.troubles);
        if troubles.get(doing) != Some(&what) {
            tracing::warn!("{doing}: {what}");
            troubles.insert(doing, what);
        }
    }

    fn overcome(&self, doing: &'static str) {
        if lock(&self.troubles).remove(doing).is_some() {
            tracing::info!("{doing}: overcome");
        }
    }
}

/// Locks a mutex whose data no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
