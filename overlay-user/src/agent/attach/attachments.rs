//! The containers of this host, and the shared data for the work on them.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    containers::{Container, Containers},
    health::HealthChecks,
    records::{Record, Wire},
};
use crate::{
    agent::{
        blocking::blocking, context::Context, count::sockets::Namespaces, error::AgentError,
        follow::Cluster, reconcile::Reconciler,
    },
    api::{EndpointUpdate, LocalContainer, Request},
    datapath::Datapath,
    link::Links,
    model::{Endpoint, EndpointState, Id},
};

const LEARNING: &str = "learning which namespaces connect to VIPs";

/// Attaches containers and looks after them.
pub struct Attachments<D, L> {
    pub(super) context: Arc<Context<D, L>>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) reconciler: Arc<Reconciler<D, L>>,
    pub(super) health: Arc<HealthChecks<D, L>>,
    pub containers: Containers,
}

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// Without containers; [`Attachments::adopt_containers`] takes over those of an earlier daemon.
    pub fn new(
        context: Arc<Context<D, L>>,
        cluster: Arc<Cluster>,
        reconciler: Arc<Reconciler<D, L>>,
    ) -> Self {
        Self {
            containers: Containers::new(context.paths.containers(), context.host.boot_id()),
            health: Arc::new(HealthChecks::new(context.clone(), cluster.clone())),
            context,
            cluster,
            reconciler,
        }
    }

    /// The containers attached on this host.
    pub fn list(&self) -> Vec<LocalContainer> {
        let attached = |c: &Arc<Container>| c.is_attached();
        self.containers.all().into_iter().filter(attached).map(|c| self.describe(&c)).collect()
    }

    fn describe(&self, container: &Container) -> LocalContainer {
        let record = container.record();
        let state = self.cluster.state();
        let first = state.endpoints.values().find(|e| e.container == record.container);
        let service = first.and_then(|e| state.services.get(e.service.as_ref()?));
        LocalContainer {
            container: record.container,
            name: record.name,
            netns: record.netns.display().to_string(),
            pid: record.process.map(|p| p.pid),
            service: service.filter(|s| s.owner.is_none()).map(|s| s.name.clone()),
            state: first.map_or(EndpointState::Starting, |e| e.state),
            interfaces: record.wires.iter().map(Wire::interface).collect(),
        }
    }

    /// Names of the host-side ends of the containers' links, by interface index.
    pub fn interfaces(&self) -> BTreeMap<u32, String> {
        let records: Vec<Record> = self.containers.all().iter().map(|c| c.record()).collect();
        let facts = self.reconciler.facts();
        let wires = records.into_iter().flat_map(|record| record.wires);
        wires.filter_map(|wire| Some((*facts.links.get(&wire.endpoint)?, wire.host_name))).collect()
    }

    /// The namespaces of the containers, and the host's own, by their cookies as far as known.
    pub fn namespaces(&self) -> Namespaces {
        let records: Vec<Record> = self.containers.all().iter().map(|c| c.record()).collect();
        let facts = self.reconciler.facts();
        let of = |record: &Record| {
            let cookie = record.wires.iter().find_map(|w| facts.netns.get(&w.endpoint).copied());
            cookie.map(|cookie| (cookie, Some(record.netns.clone())))
        };
        let mut namespaces: Namespaces = records.iter().filter_map(of).collect();
        namespaces.extend(self.context.host.netns_cookie().ok().map(|own| (own, None)));
        namespaces
    }

    /// Notes the cookie of a namespace for one of its endpoints. Where the kernel does not tell it,
    /// VIPs are balanced by packets.
    pub(super) fn note_netns(&self, netns: &Path, endpoint: &Id) {
        if self.reconciler.facts().netns.contains_key(endpoint) {
            return;
        }
        let cookie = self.context.host.netns_cookie_of(netns).map(|cookie| {
            self.reconciler.facts().netns.insert(endpoint.clone(), cookie);
        });
        self.context.conditions.note(LEARNING, cookie);
    }

    /// Writes the containers down, off the runtime's threads.
    pub(super) async fn save_containers(self: &Arc<Self>) -> Result<(), AgentError> {
        let attachments = self.clone();
        blocking(move || attachments.containers.save()).await
    }

    /// Tells the manager where a container's endpoints are in their life.
    pub async fn set_endpoint_state(
        &self,
        container: &Id,
        state: EndpointState,
    ) -> Result<Vec<Endpoint>, AgentError> {
        let update = EndpointUpdate { container: container.clone(), state };
        Ok(self.context.call(Request::EndpointUpdate(update)).await?)
    }
}
