//! Takes a container out of service without cutting its flows.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{attachments::Attachments, containers::Container};
use crate::{
    agent::error::AgentError,
    api::{ApiError, ContainerRef, Drained, ErrorCode, FlowsLeft, Request, Sync, SyncAnswer},
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Endpoint, EndpointState, Id},
};

/// How long the nodes may take to confirm that they send no new flows.
const CONFIRM_WITHIN_MS: u64 = 5000;
/// How often the managers are asked for the flows left.
const ASK_EVERY: Duration = Duration::from_millis(250);

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// Drains a container's backends: no node sends new flows, then the flows that are there get
    /// the service's drain time to end. One that serves nothing, or never took flows, is drained
    /// at once.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], or [`ErrorCode::Unavailable`] when the managers cannot be told.
    pub async fn drain(self: &Arc<Self>, reference: &str) -> Result<Drained, ApiError> {
        let container = &self.containers.find(reference)?;
        let _busy = container.busy.lock().await;
        if !container.is_attached() {
            return Err(detached(&container.record().name));
        }
        Ok(self.drain_held(container).await?)
    }

    /// As [`Attachments::drain`], for a caller that holds the container.
    pub async fn drain_held(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<Drained, AgentError> {
        let nothing = Drained { lagging: Vec::new(), drained_ms: 0 };
        let state = self.cluster.state();
        let backends = backends(&state, container.id());
        if backends.is_empty() || container.drained.load(Ordering::Relaxed) {
            return Ok(nothing);
        }
        let took_flows = backends.iter().any(|e| e.state != EndpointState::Starting);
        self.set_endpoint_state(container.id(), EndpointState::Draining).await?;
        if !took_flows {
            return Ok(nothing);
        }
        let sync = Request::Sync(Sync { revision: None, timeout_ms: CONFIRM_WITHIN_MS });
        let answer: SyncAnswer = self.context.call(sync).await?;
        let begun = Instant::now();
        self.wait_for_flows(&state, &backends).await;
        container.drained.store(true, Ordering::Relaxed);
        let drained_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(container = %container.record().name, drained_ms, "drained");
        Ok(Drained { lagging: answer.lagging, drained_ms })
    }

    /// Waits for the longest drain time of the services, or until no node has a flow left.
    async fn wait_for_flows(&self, state: &ClusterState, backends: &[Endpoint]) {
        let Some(first) = backends.first() else { return };
        let services = backends.iter().filter_map(|e| state.services.get(e.service.as_ref()?));
        let longest = services.map(|s| s.drain_ms).max().unwrap_or(0);
        let end = Instant::now() + Duration::from_millis(longest);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            let asked = Request::FlowsLeft(ContainerRef { container: first.container.clone() });
            let asked = self.context.call::<FlowsLeft>(asked);
            // Without an answer nothing is known, and the time has to pass.
            if let Ok(Ok(FlowsLeft { flows: Some(0) })) = tokio::time::timeout(left, asked).await {
                return;
            }
            tokio::time::sleep(left.min(ASK_EVERY)).await;
        }
    }
}

fn backends(state: &ClusterState, container: &Id) -> Vec<Endpoint> {
    let mine = state.endpoints.values().filter(|e| e.container == *container);
    let serves = |e: &&Endpoint| e.service.as_ref().is_some_and(|s| state.services.contains_key(s));
    mine.filter(serves).cloned().collect()
}

/// The container was detached while a call waited for it.
pub fn detached(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("container {name:?} has just been detached"))
}
