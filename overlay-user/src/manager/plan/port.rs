//! Published ports: the rules for conflicts between them.

use std::{collections::BTreeSet, ops::RangeInclusive};

use crate::{
    api::ApiError,
    manager::error::{conflict, exhausted, invalid},
    model::{Cluster, ClusterState, Id, Network, Port, Protocol, PublishMode, Service},
};

/// Range of automatically chosen ports, as in Docker.
const AUTOMATIC: RangeInclusive<u16> = 30_000..=32_767;

/// The ports of a service: the existing ones and the requested ones.
pub(in crate::manager) struct Publish<'a> {
    /// The service; `None` when it is being made.
    pub service: Option<&'a Id>,
    /// Existing ports that stay.
    pub kept: Vec<Port>,
    /// Network of the backends that the ports lead to.
    pub network: &'a Network,
}

impl Publish<'_> {
    /// Checks the requested ports against all published ports of the cluster, and chooses the
    /// published ports that the request leaves open. Returns all ports of the service.
    pub fn add(self, state: &ClusterState, wanted: &[Port]) -> Result<Vec<Port>, ApiError> {
        let Self { service, kept: mut ports, network } = self;
        self::check_network(state, network, wanted)?;
        let others = || state.services.values().filter(|s| Some(&s.id) != service);
        for port in wanted.iter().filter(|p| p.published.is_some()) {
            check(state, &ports, port)?;
            for other in others() {
                if let Some(theirs) = other.ports.iter().find(|theirs| clash(port, theirs)) {
                    return Err(taken(theirs, other));
                }
            }
            ports.push(*port);
        }
        let reserved = reserved(state.cluster.as_ref(), state);
        let mut used: BTreeSet<(u16, Protocol)> = others()
            .flat_map(|s| &s.ports)
            .chain(&ports)
            .filter_map(|p| Some((p.published?, p.protocol)))
            .chain(reserved.into_iter().map(|(port, protocol, _)| (port, protocol)))
            .collect();
        for port in wanted.iter().filter(|p| p.published.is_none()) {
            check_target(port)?;
            let free = AUTOMATIC.into_iter().find(|n| !used.contains(&(*n, port.protocol)));
            let published = free.ok_or_else(|| {
                exhausted(format!(
                    "every {} port from {} to {} is published already",
                    port.protocol,
                    AUTOMATIC.start(),
                    AUTOMATIC.end()
                ))
                .hint("choose a port of your own, or give up some")
            })?;
            used.insert((published, port.protocol));
            ports.push(Port { published: Some(published), ..*port });
        }
        Ok(ports)
    }
}

fn check_network(state: &ClusterState, network: &Network, wanted: &[Port]) -> Result<(), ApiError> {
    let Some(port) = wanted.first() else { return Ok(()) };
    if network.internal {
        return Err(invalid(format!(
            "port {} cannot be published: network {} is internal",
            port.target, network.name
        ))
        .hint("put a network that is not internal first, or publish nothing"));
    }
    if state.ingress().is_none() && wanted.iter().any(|p| p.mode == PublishMode::Ingress) {
        return Err(invalid(format!(
            "port {} cannot be published on every node: there is no ingress network",
            port.target
        ))
        .hint("make one with `overlay network create --ingress NAME`, or use mode=host"));
    }
    Ok(())
}

fn check_target(port: &Port) -> Result<(), ApiError> {
    if port.target == 0 || port.published == Some(0) {
        return Err(invalid(format!("port {port} cannot be published: 0 is not a port")));
    }
    if port.protocol == Protocol::Sctp && port.published != Some(port.target) {
        // The checksum of SCTP covers the whole packet, and the datapath never passes over a whole
        // packet.
        return Err(invalid(format!(
            "port {port} cannot be published: SCTP is published under the port that it has inside"
        ))
        .hint(format!("write {0}:{0}/sctp", port.target)));
    }
    Ok(())
}

/// Checks a port against the cluster's own ports and the service's ports.
fn check(state: &ClusterState, own: &[Port], port: &Port) -> Result<(), ApiError> {
    check_target(port)?;
    let same = |other: &Port| other.published == port.published && other.protocol == port.protocol;
    let reserved = reserved(state.cluster.as_ref(), state);
    let found = reserved.iter().find(|(n, p, _)| port.published == Some(*n) && port.protocol == *p);
    if let Some((number, protocol, what)) = found {
        return Err(conflict(format!(
            "port {number}/{protocol} cannot be published: it is {what}"
        ))
        .hint("choose another port"));
    }
    if let Some(twice) = own.iter().find(|other| same(other)) {
        return Err(conflict(format!(
            "port {}/{} is published twice by the same service",
            twice.published.unwrap_or_default(),
            twice.protocol
        )));
    }
    Ok(())
}

/// Returns the ports of the hosts that the cluster itself needs.
fn reserved(cluster: Option<&Cluster>, state: &ClusterState) -> Vec<(u16, Protocol, &'static str)> {
    let vxlan = cluster.map(|c| (c.data_path_port, Protocol::Udp, "the data path's (VXLAN)"));
    let api = state.nodes.values().filter_map(|n| n.api_addr);
    vxlan.into_iter().chain(api.map(|a| (a.port(), Protocol::Tcp, "the managers'"))).collect()
}

/// Returns true if two services cannot both publish these ports. An ingress port is taken on every
/// node. Host ports are compared per node ([`check_node`]).
fn clash(a: &Port, b: &Port) -> bool {
    a.published == b.published
        && a.protocol == b.protocol
        && (a.mode == PublishMode::Ingress || b.mode == PublishMode::Ingress)
}

/// Rejects a host-mode port if a backend of another service on the same node has it.
pub(in crate::manager) fn check_node(
    state: &ClusterState,
    node: &Id,
    service: Option<&Id>,
    ports: &[Port],
) -> Result<(), ApiError> {
    let is_host = |p: &&Port| p.mode == PublishMode::Host;
    let wanted: BTreeSet<_> =
        ports.iter().filter(is_host).map(|p| (p.published, p.protocol)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let here: BTreeSet<&Id> = state
        .endpoints
        .values()
        .filter(|e| e.node == *node)
        .filter_map(|e| e.service.as_ref())
        .filter(|other| Some(*other) != service)
        .collect();
    for other in here.into_iter().filter_map(|id| state.services.get(id)) {
        let theirs = other.ports.iter().filter(is_host);
        if let Some(port) = theirs.into_iter().find(|p| wanted.contains(&(p.published, p.protocol)))
        {
            return Err(taken(port, other));
        }
    }
    Ok(())
}

fn taken(port: &Port, by: &Service) -> ApiError {
    let (number, protocol) = (port.published.unwrap_or_default(), port.protocol);
    let (who, remedy) = match by.owner {
        None => (
            format!("service {}", by.name),
            format!("overlay service update --publish-rm {number}/{protocol} {}", by.name),
        ),
        Some(_) => {
            (format!("container {}", by.name), format!("overlay endpoint detach {}", by.name))
        }
    };
    conflict(format!("port {number}/{protocol} is published by {who} already"))
        .hint(format!("choose another port, or give it up there: `{remedy}`"))
}

/// Removes ports. A request names the published port, or the target if that is unambiguous.
pub(in crate::manager) fn withdraw(
    service: &Service,
    unwanted: &[Port],
) -> Result<Vec<Port>, ApiError> {
    let mut ports = service.ports.clone();
    for unwanted in unwanted {
        let same = |p: &Port| p.protocol == unwanted.protocol;
        let found: Vec<Port> = match unwanted.published {
            Some(published) => ports
                .iter()
                .filter(|p| same(p) && p.published == Some(published))
                .copied()
                .collect(),
            // `--publish-rm 8080` is parsed as a target. It may mean the target or the published
            // port.
            None => {
                let number = unwanted.target;
                let by_published: Vec<Port> = ports
                    .iter()
                    .filter(|p| same(p) && p.published == Some(number))
                    .copied()
                    .collect();
                if by_published.is_empty() {
                    ports.iter().filter(|p| same(p) && p.target == number).copied().collect()
                } else {
                    by_published
                }
            }
        };
        let number = unwanted.published.unwrap_or(unwanted.target);
        match found[..] {
            [port] => ports.retain(|p| *p != port),
            [] => {
                return Err(invalid(format!(
                    "service {} does not publish port {number}/{}",
                    service.name, unwanted.protocol
                ))
                .hint(format!("it publishes {}", list(&service.ports))));
            }
            _ => {
                return Err(invalid(format!(
                    "target port {number}/{} of service {} is published more than once: {}",
                    unwanted.protocol,
                    service.name,
                    list(&found)
                ))
                .hint("name the published port"));
            }
        }
    }
    Ok(ports)
}

fn list(ports: &[Port]) -> String {
    if ports.is_empty() {
        return "no port".to_owned();
    }
    ports.iter().map(Port::to_string).collect::<Vec<_>>().join(", ")
}
