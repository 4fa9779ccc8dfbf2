//! Services: makes, changes and removes them.

use jiff::Timestamp;

use super::{
    Planned,
    draft::Draft,
    health, network,
    port::{self, Publish},
};
use crate::{
    api::{ApiError, Reference, ServiceCreate, ServiceUpdate},
    manager::error::{conflict, invalid, not_found},
    model::{
        Balance, ClusterState, Endpoint, EndpointMode, Health, Id, Kind, Network, Object, Port,
        PublishMode, Service, ServiceNetwork, check_name,
    },
};

/// Default drain time of backends, in milliseconds.
pub(in crate::manager) const DEFAULT_DRAIN_MS: u64 = 5000;
/// Longest drain time: one day.
const MAX_DRAIN_MS: u64 = 24 * 3600 * 1000;

/// Makes a service.
pub(in crate::manager) fn create(
    state: &ClusterState,
    request: &ServiceCreate,
    now: Timestamp,
) -> Planned<Service> {
    check_name("service", &request.name)?;
    if let Some(other) = state.services.values().find(|s| s.name == request.name) {
        return Err(taken(other));
    }
    let networks = networks(state, &request.networks)?;
    let first = networks[0];
    check_mode(request.mode, &request.ports)?;
    let drain_ms = check_drain(request.drain_ms)?.unwrap_or(DEFAULT_DRAIN_MS);
    let balance = Balance::default().changed(&request.balance)?;
    let health = health::changed(None, &request.health)?.map(Box::new);
    let ports =
        Publish { service: None, kept: vec![], network: first }.add(state, &request.ports)?;

    let mut draft = Draft::new(state, now)?;
    let id = Id::random();
    let mut on = Vec::with_capacity(networks.len());
    for network in networks {
        let (vip, vip6) = match request.mode {
            EndpointMode::Vip => {
                (Some(draft.allocate(&network.id, &id)?), draft.allocate6(&network.id)?)
            }
            EndpointMode::Dnsrr => (None, None),
        };
        on.push(ServiceNetwork { network: network.id.clone(), vip, vip6, number: draft.number()? });
    }
    let service = Service {
        id,
        name: request.name.clone(),
        created: now,
        mode: request.mode,
        networks: on,
        ports,
        balance,
        health,
        labels: request.labels.clone(),
        drain_ms,
        owner: None,
    };
    draft.put(Object::Service(service.clone()));
    Ok((draft.finish(), service))
}

fn taken(other: &Service) -> ApiError {
    let (name, id) = (&other.name, other.id.short());
    match other.owner {
        None => conflict(format!("a service named {name} exists already ({id})"))
            .hint(format!("choose another name, or remove it with `overlay service rm {name}`")),
        Some(_) => conflict(format!("{name} is the name of a container that publishes ports"))
            .hint("choose another name, or detach that container"),
    }
}

/// Returns the networks of a service: the given ones, or ingress.
fn networks<'a>(
    state: &'a ClusterState,
    references: &[String],
) -> Result<Vec<&'a Network>, ApiError> {
    if references.is_empty() {
        let ingress = state.ingress().ok_or_else(|| {
            invalid("a service without a network needs the ingress network, and there is none")
                .hint("give one with --network, or run `overlay network create --ingress NAME`")
        })?;
        return Ok(vec![ingress]);
    }
    let networks = network::find_all(state, references)?;
    if let Some(local) = networks.iter().find(|n| n.is_local()) {
        return Err(invalid(format!(
            "network {} is local to each node; a service needs one that spans the nodes",
            local.name
        ))
        .hint("make one with `overlay network create NAME`"));
    }
    Ok(networks)
}

fn check_mode(mode: EndpointMode, ports: &[Port]) -> Result<(), ApiError> {
    let ingress = ports.iter().find(|p| p.mode == PublishMode::Ingress);
    match (mode, ingress) {
        (EndpointMode::Dnsrr, Some(port)) => Err(invalid(format!(
            "port {} cannot be published on every node: endpoint mode dnsrr has no VIP to balance \
             with",
            port.target
        ))
        .hint("use endpoint mode vip, or publish with mode=host")),
        _ => Ok(()),
    }
}

fn check_drain(drain_ms: Option<u64>) -> Result<Option<u64>, ApiError> {
    match drain_ms {
        Some(ms) if ms > MAX_DRAIN_MS => {
            Err(invalid(format!("drain time {ms} ms is longer than a day ({MAX_DRAIN_MS} ms)")))
        }
        other => Ok(other),
    }
}

/// Changes the ports, balancing, health check, labels and drain time of a service.
pub(in crate::manager) fn update(
    state: &ClusterState,
    request: &ServiceUpdate,
    now: Timestamp,
) -> Planned<Service> {
    let before = find(state, &request.reference)?;
    refuse_owned(before, "changed")?;
    let mut service = before.clone();
    service.ports = port::withdraw(before, &request.publish_remove)?;
    if !request.publish_add.is_empty() {
        check_mode(service.mode, &request.publish_add)?;
        let draft = Draft::new(state, now)?;
        let first = service.networks.first().map(|on| draft.network(&on.network)).transpose()?;
        let network = first.ok_or_else(|| {
            invalid(format!("service {} is on no network, so no port can lead to it", service.name))
        })?;
        service.ports = Publish { service: Some(&service.id), kept: service.ports, network }
            .add(state, &request.publish_add)?;
        let nodes = state.endpoints.values().filter(|e| e.service.as_ref() == Some(&service.id));
        for Endpoint { node, .. } in nodes {
            port::check_node(state, node, Some(&service.id), &service.ports)?;
        }
    }
    for label in &request.label_remove {
        if service.labels.remove(label).is_none() {
            return Err(invalid(format!("service {} has no label {label:?}", service.name)));
        }
    }
    service.labels.extend(request.label_add.clone());
    if let Some(drain_ms) = check_drain(request.drain_ms)? {
        service.drain_ms = drain_ms;
    }
    service.balance = service.balance.changed(&request.balance)?;
    service.health = health::changed(before.health.as_deref(), &request.health)?.map(Box::new);
    let mut draft = Draft::new(state, now)?;
    if service != *before {
        draft.put(Object::Service(service.clone()));
    }
    if service.health.is_none() && before.health.is_some() {
        // Backends without a health check take flows again.
        let judged =
            |e: &&Endpoint| e.service.as_ref() == Some(&service.id) && e.health != Health::Unknown;
        for endpoint in state.endpoints.values().filter(judged) {
            let endpoint = Endpoint { health: Health::Unknown, ..endpoint.clone() };
            draft.put(Object::Endpoint(endpoint));
        }
    }
    Ok((draft.finish(), service))
}

/// Removes a service. Its backends stay as plain endpoints.
pub(in crate::manager) fn remove(
    state: &ClusterState,
    request: &Reference,
    now: Timestamp,
) -> Planned<Service> {
    let service = find(state, &request.reference)?.clone();
    refuse_owned(&service, "removed")?;
    let mut draft = Draft::new(state, now)?;
    for endpoint in state.endpoints.values().filter(|e| e.service.as_ref() == Some(&service.id)) {
        draft.put(Object::Endpoint(Endpoint {
            service: None,
            health: Health::Unknown,
            ..endpoint.clone()
        }));
    }
    draft.delete(Kind::Service, &service.id);
    Ok((draft.finish(), service))
}

fn refuse_owned(service: &Service, action: &str) -> Result<(), ApiError> {
    match service.owner {
        None => Ok(()),
        Some(_) => Err(conflict(format!(
            "{} stands for the published ports of a container and cannot be {action} by itself",
            service.name
        ))
        .hint(format!("it goes with its container: `overlay endpoint detach {}`", service.name))),
    }
}

/// Finds the service that the reference names, or returns a clear error.
pub(in crate::manager) fn find<'a>(
    state: &'a ClusterState,
    reference: &str,
) -> Result<&'a Service, ApiError> {
    state.service(reference).ok_or_else(|| {
        not_found(format!("there is no service {reference:?}"))
            .hint("`overlay service ls` lists them, `overlay service create` makes one")
    })
}
