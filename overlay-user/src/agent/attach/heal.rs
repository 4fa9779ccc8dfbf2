//! Keeps the endpoints of containers in the cluster's state: asks again for those that the managers
//! lost, and removes those of containers that no longer exist.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    attachments::Attachments,
    containers::Container,
    records::{Record, Wire},
};
use crate::{
    agent::error::AgentError,
    api::ErrorCode,
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Endpoint, EndpointState, Id},
};

/// A failure is followed by another attempt after this time, also when nothing changes.
const HEAL_EVERY: Duration = Duration::from_secs(5);

const MEMBERSHIP: &str = "belonging to the cluster";
pub const HEALING: &str = "repairing endpoints";

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// After every change of the live state: are our endpoints in it, and no others of ours?
    pub async fn heal_loop(self: Arc<Self>) {
        let mut states = self.cluster.states();
        let mut connected = self.cluster.connections();
        // The loop must also see the objects that exist when it starts.
        states.mark_changed();
        loop {
            tokio::select! {
                _ = states.changed() => {}
                _ = connected.changed() => {}
                () = tokio::time::sleep(HEAL_EVERY) => {}
            }
            states.borrow_and_update();
            connected.borrow_and_update();
            let Some(state) = self.cluster.live_state() else { continue };
            self.context.conditions.note(HEALING, self.heal(&state).await);
        }
    }

    async fn heal(self: &Arc<Self>, state: &ClusterState) -> Result<(), AgentError> {
        if !state.nodes.contains_key(self.context.node()) {
            self.context.conditions.fail(
                MEMBERSHIP,
                "this node was removed from the cluster; `overlay leave --force` removes the rest \
                 from this host",
            );
            return Ok(());
        }
        self.context.conditions.clear(MEMBERSHIP);
        for orphan in self.orphans(state) {
            tracing::info!(container = %orphan, "removing endpoints of a container that is gone");
            self.remove_endpoints(&orphan).await?;
        }
        for container in self.containers.all() {
            self.heal_container(state, &container).await?;
        }
        Ok(())
    }

    /// Containers that have endpoints on this node and do not exist.
    fn orphans(&self, state: &ClusterState) -> BTreeSet<Id> {
        let mine = state.endpoints.values().filter(|e| e.node == *self.context.node());
        let containers: BTreeSet<&Id> = mine.map(|e| &e.container).collect();
        containers.into_iter().filter(|id| !self.containers.has(id)).cloned().collect()
    }

    async fn heal_container(
        self: &Arc<Self>,
        state: &ClusterState,
        container: &Arc<Container>,
    ) -> Result<(), AgentError> {
        let Ok(_busy) = container.busy.try_lock() else { return Ok(()) };
        if !container.is_attached() {
            return Ok(());
        }
        let record = container.record();
        if record.wires.iter().all(|w| state.endpoints.contains_key(&w.endpoint)) {
            container.seen.store(true, Ordering::Relaxed);
            return Ok(());
        }
        if !container.was_seen() {
            return Ok(());
        }
        tracing::warn!(container = %record.name, "the managers lost its endpoints: asking again");
        match self.register_again(container, &record).await {
            Err(AgentError::Api(error)) if error.code != ErrorCode::Unavailable => {
                tracing::warn!(container = %record.name, "detaching it: {error}");
                self.unwire(container).await.map(drop)
            }
            outcome => outcome,
        }
    }

    /// Registers the endpoints of a container anew. With the addresses it had its links stay; with
    /// others they are made anew.
    async fn register_again(
        self: &Arc<Self>,
        container: &Arc<Container>,
        record: &Record,
    ) -> Result<(), AgentError> {
        let endpoints = self.ask_again(record).await?;
        let state = self.state_with(&endpoints).await?;
        if same_addresses(&record.wires, &endpoints) {
            self.rename_wires(container, &endpoints);
            self.reconciler.wake();
        } else {
            self.take_up(&record.wires).await?;
            container.change(|record| record.wires.clear());
            let wires = self.plan(&state, record, &endpoints)?;
            self.lay(container, wires).await?;
        }
        self.save_containers().await?;
        if endpoints.iter().any(|e| e.state == EndpointState::Starting) {
            self.watch_readiness(container);
        }
        Ok(())
    }

    /// Asks for the address it had where an address can be asked for, then for any.
    async fn ask_again(&self, record: &Record) -> Result<Vec<Endpoint>, AgentError> {
        if let [wire] = &record.wires[..] {
            let mut same = record.clone();
            same.request.ip = Some(wire.address.addr());
            same.request.ip6 = wire.address6.map(|address| address.addr());
            match self.create_endpoints(&same).await {
                Err(AgentError::Api(error)) if error.code != ErrorCode::Unavailable => {}
                outcome => return outcome,
            }
        }
        self.create_endpoints(record).await
    }

    fn rename_wires(&self, container: &Container, endpoints: &[Endpoint]) {
        let mut facts = self.reconciler.facts();
        container.change(|record| {
            for (wire, endpoint) in record.wires.iter_mut().zip(endpoints) {
                let old = std::mem::replace(&mut wire.endpoint, endpoint.id.clone());
                let ifindex = facts.links.remove(&old);
                facts.links.extend(ifindex.map(|ifindex| (endpoint.id.clone(), ifindex)));
                let cookie = facts.netns.remove(&old);
                facts.netns.extend(cookie.map(|cookie| (endpoint.id.clone(), cookie)));
            }
        });
    }
}

fn same_addresses(wires: &[Wire], endpoints: &[Endpoint]) -> bool {
    wires.len() == endpoints.len()
        && wires.iter().zip(endpoints).all(|(wire, e)| wire.has_addresses_of(e))
}
