//! Takes over what an earlier daemon left, and heals what the world does to containers: ended
//! processes, vanished namespaces and links, endpoints that the manager lost or never forgot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{
    agent::{
        Agent, AgentError,
        attach::containers::Container,
        attach::records::{Record, Wire},
        attach::{ENDPOINT_PREFIX, host_name},
        lock,
    },
    api::ErrorCode,
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Endpoint, EndpointState, Id},
};

/// What failed is tried again after this, also when nothing changes.
const HEAL_EVERY: Duration = Duration::from_secs(5);

const MEMBERSHIP: &str = "belonging to the cluster";
const HEALING: &str = "repairing endpoints";

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Takes over the containers of an earlier daemon: their links become known again, and those
    /// whose namespace or process is gone are cleaned up.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] when their file cannot be read.
    pub(in crate::agent) async fn adopt_containers(self: &Arc<Self>) -> Result<(), AgentError> {
        for record in self.containers.load()? {
            tracing::info!(container = %record.name, "it did not survive the reboot");
        }
        let present = self.endpoint_links().await?;
        for container in self.containers.all() {
            if let Err(why) = self.adopt(&container, &present).await {
                tracing::info!(container = %container.record().name, "not taken over: {why}");
                let _busy = container.busy.lock().await;
                if let Err(failure) = self.unwire_here(&container).await {
                    tracing::warn!("cleaning up: {failure}");
                }
            }
        }
        self.save_containers().await?;
        let ids = self.containers.all().iter().map(|c| c.id().clone()).collect();
        self.names.retain(ids).await;
        self.remove_orphaned_links().await
    }

    async fn adopt(
        self: &Arc<Self>,
        container: &Arc<Container>,
        present: &BTreeMap<String, u32>,
    ) -> Result<(), AgentError> {
        let record = container.record();
        self.check_namespace(&record)?;
        if let Some(process) = record.process {
            self.watch_process(container, process)?;
        }
        self.find_links(&record, present).await?;
        self.watch_readiness(container);
        self.watch_health(container);
        if let Err(error) = self.names.ensure(container.id(), &record.netns).await {
            self.trouble(HEALING, error);
        }
        Ok(())
    }

    /// Notes the indexes of a container's links; makes those anew that are missing.
    async fn find_links(
        &self,
        record: &Record,
        present: &BTreeMap<String, u32>,
    ) -> Result<(), AgentError> {
        for wire in &record.wires {
            let ifindex = match present.get(&wire.host_name) {
                Some(ifindex) => *ifindex,
                None => {
                    tracing::warn!(container = %record.name, "{} is gone: made anew", wire.name);
                    self.datapath.detach(&wire.host_name)?;
                    self.links.ensure_endpoint_link(&wire.link(&record.netns)).await?
                }
            };
            self.note_space(&record.netns, &wire.endpoint);
            lock(&self.facts).links.insert(wire.endpoint.clone(), ifindex);
        }
        Ok(())
    }

    fn check_namespace(&self, record: &Record) -> Result<(), AgentError> {
        if self.host.namespace(&record.netns)? == record.namespace {
            return Ok(());
        }
        Err(AgentError::Host(format!("{} is another namespace by now", record.netns.display())))
    }

    /// Cleans up containers whose namespace is gone.
    pub(in crate::agent) async fn sweep_namespaces(self: &Arc<Self>) {
        for container in self.containers.all() {
            let Ok(_busy) = container.busy.try_lock() else { continue };
            let record = container.record();
            if !container.is_attached() {
                continue;
            }
            if let Err(why) = self.check_namespace(&record) {
                tracing::info!(container = %record.name, "cleaning up: {why}");
                if let Err(error) = self.unwire(&container).await {
                    tracing::warn!(container = %record.name, "cleaning up: {error}");
                }
            }
        }
    }

    /// Makes links anew that somebody removed.
    pub(in crate::agent) async fn repair_links(&self) -> Result<(), AgentError> {
        let present = self.endpoint_links().await?;
        for container in self.containers.all() {
            let Ok(_busy) = container.busy.try_lock() else { continue };
            if container.is_attached() {
                self.find_links(&container.record(), &present).await?;
            }
        }
        Ok(())
    }

    /// Attaches the program to the links of all containers; where it is attached nothing changes.
    pub(in crate::agent) fn attach_to_containers(&self) -> Result<(), AgentError> {
        let all = self.containers.all();
        all.iter().filter(|c| c.is_attached()).try_for_each(|c| self.attach_to(c))
    }

    /// Serves names in all containers; where they are served nothing changes.
    pub(in crate::agent) async fn serve_names(&self) -> Result<(), AgentError> {
        for container in self.containers.all().iter().filter(|c| c.is_attached()) {
            self.names.ensure(container.id(), &container.record().netns).await?;
        }
        Ok(())
    }

    async fn endpoint_links(&self) -> Result<BTreeMap<String, u32>, AgentError> {
        let links = self.links.list(ENDPOINT_PREFIX).await?;
        Ok(links.into_iter().filter(|(name, _)| is_endpoint_link(name)).collect())
    }

    /// Removes endpoints' links that belong to no container: a daemon ended in the middle.
    pub(in crate::agent) async fn remove_orphaned_links(&self) -> Result<(), AgentError> {
        let present = self.endpoint_links().await?;
        // Listed afterwards: a container notes a link before it makes it.
        let containers = self.containers.all();
        let known: BTreeSet<String> =
            containers.iter().flat_map(|c| c.record().wires).map(|w| w.host_name).collect();
        let attached = self.datapath.attachments()?;
        let attached = attached.into_iter().filter(|name| is_endpoint_link(name));
        for name in attached.chain(present.into_keys()).filter(|name| !known.contains(name)) {
            tracing::info!("removing {name}, which belongs to no container");
            self.datapath.detach(&name)?;
            self.links.remove(&name).await?;
        }
        Ok(())
    }

    /// After every change of the live state: are our endpoints in it, and no others of ours?
    pub(in crate::agent) async fn heal_loop(self: Arc<Self>) {
        let mut states = self.state.subscribe();
        let mut connected = self.connected.subscribe();
        // What there is when the loop starts is news to it.
        states.mark_changed();
        loop {
            tokio::select! {
                _ = states.changed() => {}
                _ = connected.changed() => {}
                () = tokio::time::sleep(HEAL_EVERY) => {}
            }
            states.borrow_and_update();
            connected.borrow_and_update();
            let Some(state) = self.live_state() else { continue };
            match self.heal(&state).await {
                Ok(()) => self.overcome(HEALING),
                Err(error) => self.trouble(HEALING, error),
            }
        }
    }

    async fn heal(self: &Arc<Self>, state: &ClusterState) -> Result<(), AgentError> {
        if !state.nodes.contains_key(self.node()) {
            self.trouble(
                MEMBERSHIP,
                "this node was removed from the cluster; `overlay leave --force` removes the rest \
                 from this host",
            );
            return Ok(());
        }
        self.overcome(MEMBERSHIP);
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
        let mine = state.endpoints.values().filter(|e| e.node == *self.node());
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
            self.wake.notify_one();
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
        let mut facts = lock(&self.facts);
        container.change(|record| {
            for (wire, endpoint) in record.wires.iter_mut().zip(endpoints) {
                let old = std::mem::replace(&mut wire.endpoint, endpoint.id.clone());
                let ifindex = facts.links.remove(&old);
                facts.links.extend(ifindex.map(|ifindex| (endpoint.id.clone(), ifindex)));
                let space = facts.spaces.remove(&old);
                facts.spaces.extend(space.map(|cookie| (endpoint.id.clone(), cookie)));
            }
        });
    }
}

fn same_addresses(wires: &[Wire], endpoints: &[Endpoint]) -> bool {
    wires.len() == endpoints.len()
        && wires.iter().zip(endpoints).all(|(wire, e)| wire.has_addresses_of(e))
}

/// Whether an interface's name is one that [`host_name`] gives: other software has interfaces
/// that begin with the same two letters.
pub(in crate::agent) fn is_endpoint_link(name: &str) -> bool {
    let id = name.strip_prefix(ENDPOINT_PREFIX).unwrap_or_default();
    let ours = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    id.len() == host_name(&Id::random()).len() - ENDPOINT_PREFIX.len() && id.bytes().all(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_endpoints_are_taken_for_ours() {
        assert!(is_endpoint_link(&host_name(&Id::random())));
        for name in ["ovs-system", "ovl-vxlan", "ovn0", "ov", "ovABCDEFGHIJKL", "ov1234567890123"] {
            assert!(!is_endpoint_link(name), "{name}");
        }
    }
}
