//! Nodes: they join, drain, leave and become silent.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{Planned, draft::Draft, endpoint};
use crate::{
    api::{ApiError, Join, Joined, NodeAddresses, NodeRemove, NodeUpdate},
    manager::error::{conflict, invalid, not_found},
    model::{
        Availability, ClusterState, Id, Kind, MAX_ADDRESSES6, Network, Node, NodeState, Object,
        Role, check_name, is_reachable6, reachable6, vtep,
    },
    pki::{Authority, CertificateFor},
};

/// Adds a node. The caller has already checked its token. The node is down until its agent reports.
///
/// A down node with the same data-path address is replaced. Its host was installed again, or
/// another host got the address, and two nodes cannot share a VTEP.
pub(in crate::manager) fn join(
    state: &ClusterState,
    request: &Join,
    authority: &Authority,
    now: Timestamp,
) -> Planned<Joined> {
    check_name("node", &request.name)?;
    check_data_path_addr(request.data_path_addr)?;
    check_family(state, request.data_path_addr)?;
    let in_subnet = state
        .networks
        .values()
        .flat_map(|n| subnets(n).map(move |subnet| (subnet, n)))
        .find(|(subnet, _)| subnet.contains(&request.data_path_addr));
    if let Some((subnet, network)) = in_subnet {
        return Err(conflict(format!(
            "data-path address {} lies in subnet {subnet} of network {}",
            request.data_path_addr, network.name
        ))
        .hint("use another --data-path-addr, or recreate the network with another subnet"));
    }
    let replaced = replaced(state, request)?;
    check_number(state, request.data_path_addr)?;

    let mut draft = Draft::new(state, now)?;
    if let Some(node) = replaced {
        delete(&mut draft, node);
    }
    let id = Id::random();
    let ingress_ip = match state.ingress() {
        Some(ingress) => draft.allocate(&ingress.id, &id)?,
        None => Ipv4Addr::UNSPECIFIED,
    };
    let addresses = [request.data_path_addr];
    let subject = CertificateFor { node: &id, role: Role::Agent, addresses: &addresses };
    let certificate_pem = authority.sign(&request.csr_pem, subject)?;
    let node = Node {
        id,
        name: request.name.clone(),
        role: Role::Agent,
        created: now,
        data_path_addr: request.data_path_addr,
        api_addr: None,
        ingress_ip,
        state: NodeState::Down,
        availability: Availability::Active,
        addresses6: Vec::new(),
    };
    draft.put(Object::Node(node.clone()));
    let joined = Joined {
        node,
        certificate_pem,
        ca_pem: authority.certificate_pem.clone(),
        data_path_port: draft.cluster().data_path_port,
    };
    Ok((draft.finish(), joined))
}

/// Rejects an address that cannot be a VTEP.
pub(in crate::manager) fn check_data_path_addr(address: IpAddr) -> Result<(), ApiError> {
    let is_out_of_reach = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        // A link-local address has no meaning without an interface. An IPv4-mapped address is not
        // IPv6.
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    if address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || is_out_of_reach
    {
        return Err(invalid(format!(
            "data-path address {address} is not one that other hosts can reach"
        ))
        .hint("give the host's own address with --data-path-addr or --iface"));
    }
    Ok(())
}

fn subnets(network: &Network) -> impl Iterator<Item = IpNet> {
    let ipv6 = network.ipv6.as_ref().map(|ipv6| IpNet::V6(ipv6.subnet));
    std::iter::once(IpNet::V4(network.subnet)).chain(ipv6)
}

/// Rejects a VTEP if the cluster's VTEPs are of the other family.
fn check_family(state: &ClusterState, address: IpAddr) -> Result<(), ApiError> {
    let Some(other) =
        state.nodes.values().find(|n| n.data_path_addr.is_ipv6() != address.is_ipv6())
    else {
        return Ok(());
    };
    let (wanted, given) = if address.is_ipv6() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    Err(conflict(format!(
        "data-path address {address} is {given}, but the nodes of this cluster have {wanted} ones \
         (node {} has {})",
        other.name, other.data_path_addr
    ))
    .hint(format!("give the host's {wanted} address with --data-path-addr")))
}

/// Rejects an IPv6 VTEP if it has the same number as another node's. The maps hold 32 bits for it.
fn check_number(state: &ClusterState, address: IpAddr) -> Result<(), ApiError> {
    let number = vtep(address);
    let same = |n: &&Node| n.data_path_addr != address && n.vtep() == number;
    match state.nodes.values().find(same) {
        Some(node) => Err(conflict(format!(
            "data-path address {address} has the same number in the datapath as {} of node {}",
            node.data_path_addr, node.name
        ))
        .hint("use another --data-path-addr")),
        None => Ok(()),
    }
}

/// Returns the down node that the new node replaces. Rejects names and addresses in use.
fn replaced<'a>(state: &'a ClusterState, request: &Join) -> Result<Option<&'a Node>, ApiError> {
    let same_address = state.nodes.values().find(|n| n.data_path_addr == request.data_path_addr);
    if let Some(node) = same_address
        && (node.state == NodeState::Ready || node.role == Role::Manager)
    {
        return Err(conflict(format!(
            "data-path address {} is that of node {}, which is in the cluster",
            request.data_path_addr, node.name
        ))
        .hint(format!(
            "if that host is gone, run `overlay node rm --force {}` on the manager",
            node.name
        )));
    }
    let same_name = state.nodes.values().find(|n| n.name == request.name);
    match same_name {
        Some(node) if same_address.is_none_or(|other| other.id != node.id) => {
            Err(conflict(format!(
                "a node named {} ({}) is in the cluster already",
                node.name, node.data_path_addr
            ))
            .hint(format!(
                "give another --name, or run `overlay node rm {}` on the manager",
                node.name
            )))
        }
        _ => Ok(same_address),
    }
}

/// Sets whether a node's backends take new flows.
pub(in crate::manager) fn update(
    state: &ClusterState,
    request: &NodeUpdate,
    now: Timestamp,
) -> Planned<Node> {
    let before = find(state, &request.reference)?;
    let node = Node { availability: request.availability, ..before.clone() };
    let mut draft = Draft::new(state, now)?;
    if node != *before {
        draft.put(Object::Node(node.clone()));
    }
    Ok((draft.finish(), node))
}

/// Records the IPv6 addresses that a node reports. The caller has already checked that the node
/// itself reports them.
pub(in crate::manager) fn addresses(
    state: &ClusterState,
    request: &NodeAddresses,
    now: Timestamp,
) -> Planned<Node> {
    let NodeAddresses { node, addresses6 } = request;
    let before = find(state, node.as_str())?;
    if addresses6.len() > MAX_ADDRESSES6 {
        return Err(invalid(format!(
            "node {} says {} IPv6 addresses, of which {MAX_ADDRESSES6} are kept",
            before.name,
            addresses6.len()
        )));
    }
    if let Some(address) = addresses6.iter().find(|address| !is_reachable6(address)) {
        return Err(invalid(format!(
            "{address} of node {} is not an address that other hosts can reach",
            before.name
        )));
    }
    let node = Node { addresses6: reachable6(addresses6), ..before.clone() };
    let mut draft = Draft::new(state, now)?;
    if node != *before {
        draft.put(Object::Node(node.clone()));
    }
    Ok((draft.finish(), node))
}

/// Removes a node with its endpoints. If the node itself asks (`by_itself`), it may be ready.
pub(in crate::manager) fn remove(
    state: &ClusterState,
    request: &NodeRemove,
    by_itself: bool,
    now: Timestamp,
) -> Planned<Node> {
    let node = find(state, &request.reference)?.clone();
    if node.state == NodeState::Ready && !request.force && !by_itself {
        return Err(conflict(format!(
            "node {} is ready: its host is part of the cluster",
            node.name
        ))
        .hint(format!(
            "run `overlay leave` on that host, or give --force if it must go (`overlay node rm \
                 --force {}`)",
            node.name
        )));
    }
    let managers = state.nodes.values().filter(|n| n.role == Role::Manager).count();
    if node.role == Role::Manager && managers == 1 && !request.force {
        return Err(conflict(format!(
            "node {} is the last manager: without it nothing in the cluster can be changed",
            node.name
        ))
        .hint("give --force to give up the cluster"));
    }
    let mut draft = Draft::new(state, now)?;
    delete(&mut draft, &node);
    Ok((draft.finish(), node))
}

fn delete(draft: &mut Draft<'_>, node: &Node) {
    for endpoint in draft.state.endpoints.values().filter(|e| e.node == node.id) {
        endpoint::delete(draft, endpoint);
    }
    draft.delete(Kind::Node, &node.id);
}

/// Marks nodes ready or down. Removed nodes and nodes in that state already stay unchanged.
pub(in crate::manager) fn mark(
    state: &ClusterState,
    nodes: &[Id],
    mark: NodeState,
    now: Timestamp,
) -> Planned<()> {
    let mut draft = Draft::new(state, now)?;
    for node in nodes.iter().filter_map(|id| state.nodes.get(id)).filter(|n| n.state != mark) {
        draft.put(Object::Node(Node { state: mark, ..node.clone() }));
    }
    Ok((draft.finish(), ()))
}

/// Finds the node that the reference names, or returns a clear error.
pub(in crate::manager) fn find<'a>(
    state: &'a ClusterState,
    reference: &str,
) -> Result<&'a Node, ApiError> {
    state.node(reference).ok_or_else(|| {
        not_found(format!("there is no node {reference:?}")).hint("`overlay node ls` lists them")
    })
}
