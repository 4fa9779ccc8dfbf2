//! Watches containers: when they begin to listen, and when their process ends.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{attachments::Attachments, containers::Container};
use crate::{
    agent::{
        blocking::blocking,
        error::AgentError,
        platform::{self, Process},
    },
    datapath::Datapath,
    link::Links,
    model::{ClusterState, EndpointState, Id},
};

/// How often a starting container is looked at: often at first, then rarely.
const LISTEN_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How many times it is looked at often.
const OFTEN: u32 = 400;

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// Unwires the container when its process ends.
    ///
    /// # Errors
    /// [`AgentError::Host`] when it has ended already.
    pub fn watch_process(
        self: &Arc<Self>,
        container: &Arc<Container>,
        process: Process,
    ) -> Result<(), AgentError> {
        let failed = |e| AgentError::Host(format!("process {}: {e}", process.pid));
        let fd = platform::pidfd(process).map_err(failed)?;
        // SAFETY: the AsyncFd owns the descriptor and nothing gives it away or closes it before.
        let fd: AsyncFd<OwnedFd> =
            unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
                .map_err(|e| failed(e.into()))?;
        let (attachments, watched) = (self.clone(), container.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = fd.readable().await {
                tracing::warn!("watching process {}: {error}", process.pid);
                return;
            }
            // A task of its own: unwiring ends the tasks of the container, this one included.
            tokio::spawn(async move { attachments.process_ended(&watched).await });
        });
        container.keep(task.abort_handle());
        Ok(())
    }

    async fn process_ended(self: &Arc<Self>, container: &Arc<Container>) {
        let _busy = container.busy.lock().await;
        let name = container.record().name;
        if container.is_attached() {
            tracing::info!(container = %name, "its process has ended");
            if let Err(error) = self.unwire(container).await {
                tracing::warn!(container = %name, "cleaning up: {error}");
            }
        }
    }

    /// Sets a starting container running as soon as a port of its service listens, or at once
    /// where nothing is to be waited for.
    pub fn watch_readiness(self: &Arc<Self>, container: &Arc<Container>) {
        let (attachments, watched) = (self.clone(), container.clone());
        let task = tokio::spawn(async move {
            let mut looks = 0;
            while !attachments.check_readiness(&watched).await {
                looks += 1;
                sleep(if looks < OFTEN { LISTEN_EVERY.0 } else { LISTEN_EVERY.1 }).await;
            }
        });
        container.keep(task.abort_handle());
    }

    /// Returns whether there is nothing more to wait for.
    async fn check_readiness(self: &Arc<Self>, container: &Container) -> bool {
        let Some(state) = self.cluster.live_state() else { return false };
        if !is_starting(&state, container) {
            // Running or draining; or not in the state yet, which `heal_loop` looks after.
            return state.endpoints.values().any(|e| e.container == *container.id());
        }
        let record = container.record();
        let ports = target_ports(&state, container.id());
        if record.wait_listen && !ports.is_empty() && !self.listens(record.netns, ports).await {
            return false;
        }
        // Held so that a drain that has begun is not undone.
        let _busy = container.busy.lock().await;
        if !container.is_attached() || !is_starting(&self.cluster.state(), container) {
            return true;
        }
        match self.set_endpoint_state(container.id(), EndpointState::Running).await {
            Ok(_) => {
                tracing::info!(container = %record.name, "running");
                true
            }
            Err(error) => {
                tracing::warn!(container = %record.name, "it listens, but: {error}");
                false
            }
        }
    }

    async fn listens(self: &Arc<Self>, netns: PathBuf, ports: Vec<(u8, u16)>) -> bool {
        let context = self.context.clone();
        let looked = blocking(move || context.links.listens(&netns, &ports)).await;
        looked.unwrap_or_else(|error| {
            tracing::debug!("looking for listening sockets: {error}");
            false
        })
    }
}

fn is_starting(state: &ClusterState, container: &Container) -> bool {
    let mut mine = state.endpoints.values().filter(|e| e.container == *container.id());
    mine.any(|e| e.state == EndpointState::Starting)
}

/// Protocols and backend ports of the services that a container serves.
pub fn target_ports(state: &ClusterState, container: &Id) -> Vec<(u8, u16)> {
    let mine = state.endpoints.values().filter(|e| e.container == *container);
    let services = mine.filter_map(|e| state.services.get(e.service.as_ref()?));
    let ports = services.flat_map(|s| &s.ports).map(|p| (p.protocol.number(), p.target));
    let mut ports: Vec<_> = ports.collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
