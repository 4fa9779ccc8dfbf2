//! Makes a namespace an endpoint: addresses from the manager, links, map entries, programs, names.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    attachments::Attachments,
    containers::{Container, Phase},
    ready::target_ports,
    records::{Record, Wire},
};
use crate::{
    agent::{
        compile::network_mtu,
        error::AgentError,
        interfaces::host_name,
        platform::{self, Process},
        reconcile::Look,
    },
    api::{ApiError, Attach, Attached, EndpointCreate, ErrorCode, Request, Sync, SyncAnswer},
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Endpoint, EndpointState, Id, Port, check_name},
};

/// Interface names in Linux have at most 15 bytes; two digits are for the number.
const LONGEST_PREFIX: usize = 13;
/// How long the state may take to show endpoints that the manager has just made.
const STATE_WITHIN: Duration = Duration::from_secs(10);
/// How long the other nodes are waited for, so that the container's first packets arrive.
const OTHERS_WITHIN_MS: u64 = 2000;

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// Attaches a namespace. On any failure everything is as before.
    ///
    /// # Errors
    /// [`ApiError`] names the rejected step and the side that rejected it.
    pub async fn attach(self: &Arc<Self>, request: Attach) -> Result<Attached, ApiError> {
        let record = self.examine(request)?;
        let container = self.containers.add(record)?;
        let _busy = container.busy.lock().await;
        match self.wire(&container).await {
            Ok(attached) => Ok(attached),
            Err(error) => {
                // The caller gets the first error; later errors are only logged.
                if let Err(failure) = self.unwire(&container).await {
                    tracing::warn!("rolling back {}: {failure}", container.record().name);
                }
                Err(error.into())
            }
        }
    }

    /// Makes the checks that need no call to a manager.
    fn examine(&self, attach: Attach) -> Result<Record, ApiError> {
        let invalid = |message: String| ApiError::new(ErrorCode::Invalid, message);
        let container = Id::random();
        let name = attach.name.unwrap_or_else(|| container.short().to_owned());
        check_name("container", &name).map_err(|e| invalid(e.to_string()))?;
        let interface_prefix = attach.interface_prefix.unwrap_or_else(|| "eth".to_owned());
        check_prefix(&interface_prefix)?;
        if attach.networks.is_empty() && attach.service.is_none() {
            return Err(invalid(format!("container {name:?} has neither network nor service"))
                .hint("name at least one: --network NETWORK or --service SERVICE"));
        }
        let netns = PathBuf::from(&attach.netns);
        let namespace = self.context.host.namespace(&netns)?;
        let process = attach.pid.map(find_process).transpose()?;
        let request = EndpointCreate {
            node: self.context.node().clone(),
            container: container.clone(),
            name: name.clone(),
            networks: attach.networks,
            ip: attach.ip,
            ip6: attach.ip6,
            aliases: attach.aliases,
            service: attach.service,
            weight: attach.weight,
            ports: attach.ports,
        };
        Ok(Record {
            container,
            name,
            netns,
            namespace,
            process,
            wires: Vec::new(),
            wait_listen: attach.wait_listen,
            interface_prefix,
            request,
        })
    }

    async fn wire(self: &Arc<Self>, container: &Arc<Container>) -> Result<Attached, AgentError> {
        let record = container.record();
        if let Some(process) = record.process {
            self.watch_process(container, process)?;
        }
        let endpoints = self.create_endpoints(&record).await?;
        let state = self.state_with(&endpoints).await?;
        let wires = self.plan(&state, &record, &endpoints)?;
        self.lay(container, wires).await?;
        self.context.names.ensure(container.id(), &record.netns).await?;
        self.tell_others(&record.name).await;
        container.enter(Phase::Attached);
        container.seen.store(true, std::sync::atomic::Ordering::Relaxed);
        self.save_containers().await?;
        let ports = published_for_it_alone(&state, &endpoints);
        if record.wait_listen && !target_ports(&state, container.id()).is_empty() {
            self.watch_readiness(container);
        } else {
            self.set_endpoint_state(container.id(), EndpointState::Running).await?;
        }
        self.health.watch(container);
        let interfaces = container.record().wires.iter().map(Wire::interface).collect();
        tracing::info!(container = %record.name, "attached");
        Ok(Attached { container: record.container, name: record.name, interfaces, ports })
    }

    /// Asks the manager for one endpoint per network.
    pub async fn create_endpoints(&self, record: &Record) -> Result<Vec<Endpoint>, AgentError> {
        let create = Request::EndpointCreate(record.request.clone());
        let endpoints: Vec<Endpoint> = self.context.call(create).await?;
        if endpoints.is_empty() {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                format!("container {:?} got no network", record.name),
            )
            .hint("the service has none; name one with --network")
            .into());
        }
        Ok(endpoints)
    }

    /// Waits until the state shows the endpoints.
    pub async fn state_with(
        &self,
        endpoints: &[Endpoint],
    ) -> Result<Arc<ClusterState>, AgentError> {
        let mut states = self.cluster.states();
        let shows = |state: &Option<Arc<ClusterState>>| {
            let state = state.as_ref();
            state.is_some_and(|s| endpoints.iter().all(|e| s.endpoints.contains_key(&e.id)))
        };
        let late = || {
            ApiError::new(
                ErrorCode::Unavailable,
                "the manager made the endpoints but its stream of changes does not show them",
            )
            .hint("see `overlay status` for the connection to the managers, then try again")
        };
        let found = tokio::time::timeout(STATE_WITHIN, states.wait_for(shows)).await;
        let state = found.map_err(|_| late())?.map_err(|_| late())?;
        state.clone().ok_or_else(|| late().into())
    }

    /// Names, addresses and routes of the interfaces to be made. The default route of either family
    /// leads to the first network with that family that has a way out.
    pub fn plan(
        &self,
        state: &ClusterState,
        record: &Record,
        endpoints: &[Endpoint],
    ) -> Result<Vec<Wire>, AgentError> {
        let underlay_mtu = self.reconciler.facts().underlay_mtu;
        let (mut routed, mut routed6) = (false, false);
        let mut wires = Vec::new();
        for (i, endpoint) in endpoints.iter().enumerate() {
            let network = state.networks.get(&endpoint.network).ok_or_else(|| {
                ApiError::new(ErrorCode::NotFound, "the network was removed meanwhile")
            })?;
            let address = Ipv4Net::new(endpoint.ip, network.subnet.prefix_len())
                .map_err(|e| AgentError::Host(e.to_string()))?;
            let default_route = !network.internal && !routed;
            routed |= default_route;
            let ipv6 = network.ipv6.as_ref().zip(endpoint.ip6);
            let address6 = ipv6
                .map(|(ipv6, ip6)| Ipv6Net::new(ip6, ipv6.subnet.prefix_len()))
                .transpose()
                .map_err(|e| AgentError::Host(e.to_string()))?;
            let gateway6 = ipv6.map(|(ipv6, _)| ipv6.gateway).filter(|_| !network.internal);
            let default_route6 = gateway6.is_some() && !routed6;
            routed6 |= default_route6;
            wires.push(Wire {
                endpoint: endpoint.id.clone(),
                network: network.id.clone(),
                network_name: network.name.clone(),
                host_name: host_name(&endpoint.id),
                name: format!("{}{i}", record.interface_prefix),
                address,
                gateway: Some(network.gateway).filter(|_| !network.internal),
                default_route,
                address6,
                gateway6,
                default_route6,
                mtu: network_mtu(network, self.context.config.data_path_addr, underlay_mtu),
            });
        }
        Ok(wires)
    }

    /// Makes the links, then the map entries, and only then lets the programs see packets.
    pub async fn lay(
        self: &Arc<Self>,
        container: &Container,
        wires: Vec<Wire>,
    ) -> Result<(), AgentError> {
        let netns = container.record().netns;
        for wire in wires {
            // Noted first, so that a rollback finds it whatever happens.
            container.change(|record| record.wires.push(wire.clone()));
            let ifindex = self.context.links.ensure_endpoint_link(&wire.link(&netns)).await?;
            self.note_netns(&netns, &wire.endpoint);
            self.reconciler.facts().links.insert(wire.endpoint, ifindex);
        }
        self.reconciler.reconcile(Look::Memory).await?;
        self.attach_to(container)
    }

    /// Attaches the program to the links of a container.
    pub fn attach_to(&self, container: &Container) -> Result<(), AgentError> {
        for wire in container.record().wires {
            self.context.datapath.attach_container(&wire.host_name)?;
        }
        Ok(())
    }

    /// Waits, but not for ever, until every node knows the new endpoints. A node that does not know
    /// them drops the container's first packets.
    async fn tell_others(&self, name: &str) {
        let sync = Request::Sync(Sync { revision: None, timeout_ms: OTHERS_WITHIN_MS });
        match self.context.call::<SyncAnswer>(sync).await {
            Ok(answer) if answer.lagging.is_empty() => {}
            Ok(answer) => {
                tracing::warn!("attaching {name}: not known yet on {}", answer.lagging.join(", "))
            }
            Err(error) => tracing::warn!("attaching {name}: the other nodes: {error}"),
        }
    }
}

fn published_for_it_alone(state: &ClusterState, endpoints: &[Endpoint]) -> Vec<Port> {
    let mut services = endpoints.iter().filter_map(|e| state.services.get(e.service.as_ref()?));
    services.find(|s| s.owner.is_some()).map(|s| s.ports.clone()).unwrap_or_default()
}

fn check_prefix(prefix: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = (1..=LONGEST_PREFIX).contains(&prefix.len());
    if fits && prefix.bytes().all(allowed) && prefix.as_bytes()[0].is_ascii_alphabetic() {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Invalid, format!("invalid interface prefix {prefix:?}")).hint(
        format!(
            "use 1 to {LONGEST_PREFIX} letters, digits, '-', '_' or '.', starting with a letter: \
             \"eth\" gives eth0, eth1, …"
        ),
    ))
}

fn find_process(pid: u32) -> Result<Process, ApiError> {
    platform::process(pid).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no process {pid}"))
            .hint("the container's process must run before it is attached")
    })
}
