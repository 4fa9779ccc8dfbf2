//! Takes a container out of service without cutting its flows.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use overlay_common::{
    Be32,
    maps::{Conntrack, ConntrackKey, TCP_SEEN_FIN, TCP_SEEN_RST},
};

use super::{Agent, AgentError, containers::Container, control::call};
use crate::{
    api::{ApiError, Drained, ErrorCode, Request, Sync, SyncAnswer},
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Endpoint, EndpointState, Id},
};

/// How long the nodes may take to confirm that they send no new flows.
const CONFIRM_WITHIN_MS: u64 = 5000;
/// How often the flows left are counted.
const COUNT_EVERY: Duration = Duration::from_millis(250);

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Drains a container's backends: no node sends new flows, then the flows that are there get
    /// the service's drain time to end. One that serves nothing, or never took flows, is drained
    /// at once.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the managers cannot be told.
    pub async fn drain(self: &Arc<Self>, container: &Arc<Container>) -> Result<Drained, ApiError> {
        let _busy = container.busy.lock().await;
        if !container.is_attached() {
            return Err(gone(&container.record().name));
        }
        Ok(self.drain_held(container).await?)
    }

    /// As [`Agent::drain`], for a caller that holds the container.
    pub(super) async fn drain_held(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<Drained, AgentError> {
        let nothing = Drained { lagging: Vec::new(), drained_ms: 0 };
        let state = self.state();
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
        let answer: SyncAnswer = call(&*self.control, sync).await?;
        let begun = Instant::now();
        self.wait_for_flows(&state, &backends).await;
        container.drained.store(true, Ordering::Relaxed);
        let drained_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(container = %container.record().name, drained_ms, "drained");
        Ok(Drained { lagging: answer.lagging, drained_ms })
    }

    /// Waits for the longest drain time of the services, or until no flow is left where this node
    /// sees all of them.
    async fn wait_for_flows(self: &Arc<Self>, state: &ClusterState, backends: &[Endpoint]) {
        let services = backends.iter().filter_map(|e| state.services.get(e.service.as_ref()?));
        let longest = services.map(|s| s.drain_ms).max().unwrap_or(0);
        let end = Instant::now() + Duration::from_millis(longest);
        let sees_all = !self.others_may_translate(state, backends);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            if sees_all && !self.has_flows(state, backends).await {
                return;
            }
            tokio::time::sleep(left.min(COUNT_EVERY)).await;
        }
    }

    /// A client behind another node is translated there, and its flows are in that node's
    /// conntrack table only.
    fn others_may_translate(&self, state: &ClusterState, backends: &[Endpoint]) -> bool {
        let networks: BTreeSet<&Id> = backends.iter().map(|e| &e.network).collect();
        let shared = |e: &Endpoint| e.node != *self.node() && networks.contains(&e.network);
        let local = |id: &&Id| state.networks.get(*id).is_some_and(|n| n.is_local());
        state.nodes.len() > 1
            && !networks.iter().all(local)
            && (state.endpoints.values().any(shared)
                || networks.iter().any(|id| state.networks.get(*id).is_some_and(|n| n.ingress)))
    }

    async fn has_flows(self: &Arc<Self>, state: &ClusterState, backends: &[Endpoint]) -> bool {
        let vni = |e: &Endpoint| state.networks.get(&e.network).map_or(0, |n| n.vni);
        let numbers: BTreeSet<u32> = backends.iter().map(|e| e.number).collect();
        let addresses: BTreeSet<(u32, Be32)> =
            backends.iter().map(|e| (vni(e), e.ip.into())).collect();
        let agent = self.clone();
        let limit = usize::try_from(self.config.conntrack_size).unwrap_or(usize::MAX);
        let entries = tokio::task::spawn_blocking(move || agent.datapath.conntrack(limit)).await;
        match entries {
            Ok(Ok(entries)) => {
                entries.iter().any(|(key, entry)| refers(key, entry, &numbers, &addresses))
            }
            // Not known: let the drain time pass.
            _ => true,
        }
    }
}

/// Whether a conntrack entry is of a flow that has not ended and refers to one of the backends:
/// by number where this node translates, by address where it only returns.
fn refers(
    key: &ConntrackKey,
    entry: &Conntrack,
    numbers: &BTreeSet<u32>,
    addresses: &BTreeSet<(u32, Be32)>,
) -> bool {
    let ended = entry.state & (TCP_SEEN_FIN | TCP_SEEN_RST) != 0;
    !ended && (numbers.contains(&entry.backend) || addresses.contains(&(key.vni, key.saddr)))
}

fn backends(state: &ClusterState, container: &Id) -> Vec<Endpoint> {
    let mine = state.endpoints.values().filter(|e| e.container == *container);
    let serves = |e: &&Endpoint| e.service.as_ref().is_some_and(|s| state.services.contains_key(s));
    mine.filter(serves).cloned().collect()
}

/// The container went away while somebody waited for it.
pub fn gone(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("container {name:?} has just been detached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(backend: u32, state: u8) -> Conntrack {
        Conntrack { backend, state, ..Conntrack::default() }
    }

    #[test]
    fn a_flow_refers_to_its_backend_by_number_or_by_address_until_it_ends() {
        let address = Be32::from_octets([10, 0, 1, 21]);
        let numbers = BTreeSet::from([7]);
        let addresses = BTreeSet::from([(4098, address)]);
        let refers =
            |key: &ConntrackKey, entry: &Conntrack| refers(key, entry, &numbers, &addresses);
        let elsewhere = ConntrackKey::default();
        let returned = ConntrackKey { saddr: address, vni: 4098, ..elsewhere };
        assert!(refers(&elsewhere, &entry(7, 0)));
        assert!(!refers(&elsewhere, &entry(8, 0)));
        assert!(!refers(&elsewhere, &entry(7, TCP_SEEN_FIN)));
        assert!(refers(&returned, &entry(0, 0)));
        assert!(!refers(&ConntrackKey { vni: 4099, ..returned }, &entry(0, 0)));
    }
}
