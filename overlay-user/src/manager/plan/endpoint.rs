//! Endpoints: a container gets one endpoint per network, all of them or none.

use jiff::Timestamp;

use super::{
    Planned,
    draft::Draft,
    network,
    port::{self, Publish},
    service,
};
use crate::{
    api::{ApiError, ContainerRef, EndpointCreate, EndpointHealth, EndpointUpdate, EndpointWeight},
    manager::error::{conflict, forbidden, invalid, not_found},
    model::{
        Balance, ClusterState, DEFAULT_WEIGHT, Driver, Endpoint, EndpointMode, EndpointState,
        Health, Id, Kind, Network, Object, Port, PublishMode, Service, ServiceNetwork, check_name,
    },
};

/// Makes the endpoints of a container. A repeated call for the same container returns the existing
/// endpoints.
pub(in crate::manager) fn create(
    state: &ClusterState,
    request: &EndpointCreate,
    now: Timestamp,
) -> Planned<Vec<Endpoint>> {
    let (networks, service) = check(state, request)?;
    if let Some(existing) = existing(state, request, &networks)? {
        return Ok((super::Plan::default(), existing));
    }
    check_container_names(state, request, &networks)?;
    let mut draft = Draft::new(state, now)?;
    let mut endpoints = Vec::with_capacity(networks.len());
    for network in &networks {
        let ip = match request.ip {
            Some(ip) => {
                draft.reserve(&network.id, &request.node, ip)?;
                ip
            }
            None => draft.allocate(&network.id, &request.node)?,
        };
        let ip6 = match request.ip6 {
            Some(ip6) => {
                draft.reserve6(&network.id, ip6)?;
                Some(ip6)
            }
            None => draft.allocate6(&network.id)?,
        };
        endpoints.push(Endpoint {
            id: Id::random(),
            number: draft.number()?,
            name: request.name.clone(),
            container: request.container.clone(),
            network: network.id.clone(),
            node: request.node.clone(),
            ip,
            ip6,
            aliases: request.aliases.clone(),
            service: service.map(|s| s.id.clone()),
            weight: request.weight.unwrap_or(DEFAULT_WEIGHT),
            state: EndpointState::Starting,
            health: match service.and_then(|s| s.health.as_ref()) {
                Some(_) => Health::Starting,
                None => Health::Unknown,
            },
            created: now,
        });
    }
    if let Some(service) = service {
        port::check_node(state, &request.node, Some(&service.id), &service.ports)?;
    }
    if let (false, [first, ..]) = (request.ports.is_empty(), &mut endpoints[..]) {
        let owner = owner_service(&mut draft, request, networks[0], first)?;
        first.service = Some(owner.id.clone());
        draft.put(Object::Service(owner));
    }
    for endpoint in &endpoints {
        draft.put(Object::Endpoint(endpoint.clone()));
    }
    Ok((draft.finish(), endpoints))
}

/// Checks the contents of the request and looks up the objects that it names.
fn check<'a>(
    state: &'a ClusterState,
    request: &EndpointCreate,
) -> Result<(Vec<&'a Network>, Option<&'a Service>), ApiError> {
    check_name("container", &request.name)?;
    for alias in &request.aliases {
        check_name("alias", alias)?;
    }
    let id = request.container.as_str();
    if !(12..=64).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(invalid(format!(
            "container id {id:?} is none: it must have 12 to 64 letters and digits"
        )));
    }
    let service = match &request.service {
        None => None,
        Some(reference) => Some(service::find(state, reference)?),
    };
    if let Some(service) = service {
        if service.owner.is_some() {
            return Err(invalid(format!(
                "{} stands for the published ports of one container; no other can join it",
                service.name
            )));
        }
        if !request.ports.is_empty() {
            return Err(invalid(format!(
                "container {} serves {}, whose ports are published for all of its backends",
                request.name, service.name
            ))
            .hint(format!("`overlay service update --publish-add PORT {}`", service.name)));
        }
    }
    if let (Some(weight), None) = (request.weight, service) {
        return Err(invalid(format!(
            "container {} has weight {weight} and serves nothing: a weight is a backend's share of \
             its service's flows",
            request.name
        ))
        .hint("give --service NAME, or leave out the weight"));
    }
    let networks = networks(state, request, service)?;
    if (request.ip.is_some() || request.ip6.is_some()) && networks.len() != 1 {
        return Err(invalid(format!(
            "a fixed address needs exactly one network, and {} are given",
            networks.len()
        )));
    }
    Ok((networks, service))
}

fn networks<'a>(
    state: &'a ClusterState,
    request: &EndpointCreate,
    service: Option<&Service>,
) -> Result<Vec<&'a Network>, ApiError> {
    let Some(service) = service else {
        if request.networks.is_empty() {
            return Err(invalid("a container needs a network or a service")
                .hint("give --network NAME or --service NAME"));
        }
        let networks = network::find_all(state, &request.networks)?;
        return match networks.iter().find(|n| !n.attachable) {
            None => Ok(networks),
            Some(network) if network.ingress => Err(invalid(format!(
                "network {} carries published ports and takes containers only through a service",
                network.name
            ))
            .hint("give --service NAME, or another network")),
            Some(network) => Err(invalid(format!(
                "network {} is not attachable: it takes only backends of services",
                network.name
            ))
            .hint("give --service NAME, or make a network with --attachable")),
        };
    };
    if request.networks.is_empty() {
        let ids = service.networks.iter().map(|on| &on.network);
        return ids.map(|id| network::find(state, id.as_str())).collect();
    }
    let networks = network::find_all(state, &request.networks)?;
    let on_it = |n: &&&Network| service.networks.iter().any(|on| on.network == n.id);
    match networks.iter().find(|n| !on_it(n)) {
        None => Ok(networks),
        Some(other) => {
            let names: Vec<&str> = (service.networks.iter())
                .filter_map(|on| state.networks.get(&on.network))
                .map(|n| n.name.as_str())
                .collect();
            Err(invalid(format!(
                "service {} is not on network {}: it is on {}",
                service.name,
                other.name,
                names.join(", ")
            ))
            .hint("leave out --network to join all networks of the service"))
        }
    }
}

/// Returns the existing endpoints of the container, in the order of the request.
fn existing(
    state: &ClusterState,
    request: &EndpointCreate,
    networks: &[&Network],
) -> Result<Option<Vec<Endpoint>>, ApiError> {
    let mut found: Vec<&Endpoint> = of_container(state, &request.container).collect();
    let Some(first) = found.first() else { return Ok(None) };
    let position = |e: &Endpoint| networks.iter().position(|n| n.id == e.network);
    let same = first.node == request.node
        && first.name == request.name
        && found.len() == networks.len()
        && found.iter().all(|e| position(e).is_some());
    if !same {
        return Err(conflict(format!(
            "container {} exists already, with another name, node or networks",
            request.container.short()
        ))
        .hint("detach it first"));
    }
    found.sort_by_key(|e| position(e));
    Ok(Some(found.into_iter().cloned().collect()))
}

fn check_container_names(
    state: &ClusterState,
    request: &EndpointCreate,
    networks: &[&Network],
) -> Result<(), ApiError> {
    for network in networks {
        let same = |e: &&Endpoint| {
            e.name == request.name && (!network.is_local() || e.node == request.node)
        };
        if let Some(other) = state.endpoints_of(&network.id).find(same) {
            let node = state.nodes.get(&other.node).map_or("?", |n| n.name.as_str());
            return Err(conflict(format!(
                "a container named {} is on network {} already (on node {node})",
                request.name, network.name
            ))
            .hint("choose another --name"));
        }
    }
    Ok(())
}

/// Makes the service that carries the ports of one container.
fn owner_service(
    draft: &mut Draft<'_>,
    request: &EndpointCreate,
    network: &Network,
    endpoint: &Endpoint,
) -> Result<Service, ApiError> {
    let mode = |port: &Port| match network.driver {
        Driver::Bridge => PublishMode::Host,
        Driver::Overlay => port.mode,
    };
    let wanted: Vec<Port> =
        request.ports.iter().map(|port| Port { mode: mode(port), ..*port }).collect();
    let ports = Publish { service: None, kept: vec![], network }.add(draft.state, &wanted)?;
    port::check_node(draft.state, &request.node, None, &ports)?;
    let number = draft.number()?;
    Ok(Service {
        id: Id::random(),
        name: owner_name(draft.state, request),
        created: draft.now,
        // No VIP: the service's name resolves to the container's address.
        mode: EndpointMode::Dnsrr,
        networks: vec![ServiceNetwork {
            network: network.id.clone(),
            vip: None,
            vip6: None,
            number,
        }],
        ports,
        balance: Balance::default(),
        health: None,
        labels: Default::default(),
        drain_ms: service::DEFAULT_DRAIN_MS,
        owner: Some(endpoint.id.clone()),
    })
}

/// Returns the name of the owned service: the container's name. It is made unique if a service or a
/// container of another network or node has the same name.
fn owner_name(state: &ClusterState, request: &EndpointCreate) -> String {
    if state.services.values().any(|s| s.name == request.name) {
        let name: String = request.name.chars().take(50).collect();
        format!("{name}.{}", request.container.short())
    } else {
        request.name.clone()
    }
}

/// Sets the state of all endpoints of a container. Returns the changed endpoints.
pub(in crate::manager) fn update(
    state: &ClusterState,
    node: &Id,
    request: &EndpointUpdate,
    now: Timestamp,
) -> Planned<Vec<Endpoint>> {
    let endpoints = own_endpoints(state, node, &request.container)?;
    if endpoints.is_empty() {
        return Err(not_found(format!(
            "there is no container {} in the cluster's state",
            request.container.short()
        )));
    }
    let mut draft = Draft::new(state, now)?;
    let mut changed = Vec::new();
    for endpoint in endpoints.into_iter().filter(|e| e.state != request.state) {
        let endpoint = Endpoint { state: request.state, ..endpoint.clone() };
        draft.put(Object::Endpoint(endpoint.clone()));
        changed.push(endpoint);
    }
    Ok((draft.finish(), changed))
}

/// Records the result of a container's health check. Returns the changed endpoints, which are none
/// if the check was removed in the meantime.
pub(in crate::manager) fn judge(
    state: &ClusterState,
    node: &Id,
    request: &EndpointHealth,
    now: Timestamp,
) -> Planned<Vec<Endpoint>> {
    let checked = |e: &&Endpoint| {
        let service = e.service.as_ref().and_then(|id| state.services.get(id));
        service.is_some_and(|service| service.health.is_some()) && e.health != request.health
    };
    let mut draft = Draft::new(state, now)?;
    let mut changed = Vec::new();
    for endpoint in own_endpoints(state, node, &request.container)?.into_iter().filter(checked) {
        let endpoint = Endpoint { health: request.health, ..endpoint.clone() };
        draft.put(Object::Endpoint(endpoint.clone()));
        changed.push(endpoint);
    }
    Ok((draft.finish(), changed))
}

/// Sets the weight of all endpoints of a container that is a backend. Returns the changed
/// endpoints.
pub(in crate::manager) fn weigh(
    state: &ClusterState,
    request: &EndpointWeight,
    now: Timestamp,
) -> Planned<Vec<Endpoint>> {
    let endpoints = by_reference(state, &request.container)?;
    let serves = |e: &&&Endpoint| {
        let service = e.service.as_ref().and_then(|id| state.services.get(id));
        service.is_some_and(|service| service.owner.is_none())
    };
    if endpoints.iter().find(serves).is_none() {
        return Err(conflict(format!("{} serves no service", request.container))
            .hint("a weight is a backend's share of its service's flows"));
    }
    let mut draft = Draft::new(state, now)?;
    let mut changed = Vec::new();
    for endpoint in endpoints.into_iter().filter(|e| e.weight != request.weight) {
        let endpoint = Endpoint { weight: request.weight, ..endpoint.clone() };
        draft.put(Object::Endpoint(endpoint.clone()));
        changed.push(endpoint);
    }
    Ok((draft.finish(), changed))
}

/// Returns the endpoints of the one container that the reference names.
fn by_reference<'a>(
    state: &'a ClusterState,
    reference: &str,
) -> Result<Vec<&'a Endpoint>, ApiError> {
    let begins = |id: &Id| reference.len() >= 4 && id.as_str().starts_with(reference);
    let meant = |e: &&Endpoint| {
        e.name == reference || begins(&e.container) || e.container.as_str() == reference
    };
    let endpoints: Vec<&Endpoint> = state.endpoints.values().filter(meant).collect();
    let Some(first) = endpoints.first() else {
        return Err(not_found(format!("there is no container {reference:?}"))
            .hint("`overlay endpoint ls` lists them"));
    };
    match endpoints.iter().find(|e| e.container != first.container) {
        None => Ok(endpoints),
        Some(_) => Err(conflict(format!("several containers are meant by {reference:?}"))
            .hint("give more of the container's id: `overlay endpoint ls --format json`")),
    }
}

/// Removes all endpoints of a container and the ports that were published for it alone.
pub(in crate::manager) fn remove(
    state: &ClusterState,
    node: &Id,
    request: &ContainerRef,
    now: Timestamp,
) -> Planned<Vec<Endpoint>> {
    let endpoints = own_endpoints(state, node, &request.container)?;
    let mut draft = Draft::new(state, now)?;
    for endpoint in &endpoints {
        delete(&mut draft, endpoint);
    }
    Ok((draft.finish(), endpoints.into_iter().cloned().collect()))
}

/// Removes one endpoint and the service it owns.
pub(super) fn delete(draft: &mut Draft<'_>, endpoint: &Endpoint) {
    draft.delete(Kind::Endpoint, &endpoint.id);
    let owned = endpoint.service.as_ref().and_then(|id| draft.state.services.get(id));
    if let Some(service) = owned.filter(|s| s.owner.as_ref() == Some(&endpoint.id)) {
        let id = service.id.clone();
        draft.delete(Kind::Service, &id);
    }
}

fn own_endpoints<'a>(
    state: &'a ClusterState,
    node: &Id,
    container: &Id,
) -> Result<Vec<&'a Endpoint>, ApiError> {
    let endpoints: Vec<&Endpoint> = of_container(state, container).collect();
    match endpoints.iter().find(|e| e.node != *node) {
        None => Ok(endpoints),
        Some(other) => Err(forbidden(format!(
            "container {} is on another node ({})",
            container.short(),
            other.node.short()
        ))),
    }
}

fn of_container<'a>(state: &'a ClusterState, container: &Id) -> impl Iterator<Item = &'a Endpoint> {
    state.endpoints.values().filter(move |e| e.container == *container)
}
