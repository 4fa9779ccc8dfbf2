//! Addresses: the allowed subnets of networks, and the free addresses of each network.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    api::ApiError,
    manager::error::{conflict, exhausted, invalid},
    model::{ClusterState, Id, Network},
};

/// Longest prefix of a network. It leaves a gateway and one address for a container.
pub(in crate::manager) const LONGEST_PREFIX: u8 = 30;
const SHORTEST_PREFIX: u8 = 8;

/// Ranges that no container may have (RFC 6890): this host, loopback, link-local, multicast and the
/// reserved range above it.
const NOT_FOR_HOSTS: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Rejects a subnet that no network may have. `what` names its purpose.
pub(in crate::manager) fn check_subnet(what: &str, subnet: Ipv4Net) -> Result<(), ApiError> {
    if subnet.addr() != subnet.network() {
        return Err(invalid(format!("{what} {subnet} has bits set beyond its prefix"))
            .hint(format!("write {}", subnet.trunc())));
    }
    if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&subnet.prefix_len()) {
        return Err(invalid(format!(
            "{what} {subnet} is too large or too small: its prefix must have {SHORTEST_PREFIX} to \
             {LONGEST_PREFIX} bits"
        )));
    }
    for (address, prefix) in NOT_FOR_HOSTS {
        if let Ok(reserved) = Ipv4Net::new(address, prefix)
            && overlap(reserved, subnet)
        {
            return Err(invalid(format!(
                "{what} {subnet} lies in {reserved}, which is not for hosts (RFC 6890)"
            ))
            .hint("use a private range, such as one of 10.0.0.0/8"));
        }
    }
    Ok(())
}

/// Returns true if two subnets share an address.
pub(in crate::manager) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Rejects a subnet that overlaps another network or contains a node's data-path address.
pub(in crate::manager) fn check_free(
    state: &ClusterState,
    name: &str,
    subnet: Ipv4Net,
) -> Result<(), ApiError> {
    if let Some(other) = state.networks.values().find(|n| overlap(n.subnet, subnet)) {
        return Err(conflict(format!(
            "subnet {subnet} of network {name} overlaps {} of network {}",
            other.subnet, other.name
        ))
        .hint("choose another --subnet, or leave it out for the next free one"));
    }
    if let Some(node) = state.nodes.values().find(|n| IpNet::V4(subnet).contains(&n.data_path_addr))
    {
        return Err(conflict(format!(
            "subnet {subnet} of network {name} contains {}, the data-path address of node {}",
            node.data_path_addr, node.name
        ))
        .hint("choose a --subnet apart from the hosts' own network"));
    }
    Ok(())
}

/// Returns the first subnet of the default pool that overlaps no network and contains no node's
/// address.
pub(in crate::manager) fn free_subnet(
    state: &ClusterState,
    pool: Ipv4Net,
    prefix: u8,
) -> Result<Ipv4Net, ApiError> {
    let bounds =
        |net: Ipv4Net| (u64::from(net.network().to_bits()), u64::from(net.broadcast().to_bits()));
    let node_bounds = |address: Ipv4Addr| (u64::from(address.to_bits()), address.to_bits().into());
    let mut blocked: Vec<(u64, u64)> = state
        .networks
        .values()
        .map(|n| bounds(n.subnet))
        .chain(state.nodes.values().filter_map(|n| match n.data_path_addr {
            IpAddr::V4(address) => Some(node_bounds(address)),
            IpAddr::V6(_) => None,
        }))
        .chain(NOT_FOR_HOSTS.iter().filter_map(|(a, p)| Ipv4Net::new(*a, *p).ok()).map(bounds))
        .collect();
    blocked.sort_unstable();
    let size = 1_u64 << (32 - prefix);
    let (mut candidate, pool_end) = bounds(pool);
    for (start, end) in blocked {
        if start >= candidate + size {
            break;
        }
        if end >= candidate {
            candidate = (end + 1).next_multiple_of(size);
        }
    }
    let address = (candidate + size - 1 <= pool_end).then(|| u32::try_from(candidate).ok());
    address
        .flatten()
        .and_then(|address| Ipv4Net::new(Ipv4Addr::from_bits(address), prefix).ok())
        .ok_or_else(|| {
            exhausted(format!("the default address pool {pool} has no free /{prefix} left"))
                .hint("give a subnet of your own with --subnet, or remove networks")
        })
}

/// Returns the addresses for hosts: all but the first and the last one of the subnet.
pub(in crate::manager) fn usable(subnet: Ipv4Net) -> RangeInclusive<u32> {
    subnet.network().to_bits() + 1..=subnet.broadcast().to_bits() - 1
}

/// Returns the addresses that can be allocated: the addresses for hosts within the range.
pub(in crate::manager) fn range(network: &Network) -> RangeInclusive<u32> {
    let usable = usable(network.subnet);
    match network.ip_range {
        None => usable,
        Some(range) => {
            let (first, last) = (range.network().to_bits(), range.broadcast().to_bits());
            first.max(*usable.start())..=last.min(*usable.end())
        }
    }
}

/// Returns every address of a network in use; on node-local networks, those in use on that node.
pub(in crate::manager) fn used(
    state: &ClusterState,
    network: &Network,
    node: Option<&Id>,
) -> HashSet<u32> {
    let vips = state
        .services
        .values()
        .flat_map(|s| &s.networks)
        .filter(|on| on.network == network.id)
        .filter_map(|on| on.vip);
    let endpoints = state
        .endpoints_of(&network.id)
        .filter(|e| node.is_none_or(|node| e.node == *node))
        .map(|e| e.ip);
    let nodes = state.nodes.values().filter(|_| network.ingress).map(|n| n.ingress_ip);
    [network.gateway]
        .into_iter()
        .chain(network.aux_addresses.values().copied())
        .chain(vips)
        .chain(endpoints)
        .chain(nodes)
        .map(Ipv4Addr::to_bits)
        .collect()
}

/// Returns the next free address. The search starts at the end of the last one, so that a freed
/// address is not reused at once.
pub(in crate::manager) fn next_free(network: &Network, used: &HashSet<u32>) -> Option<Ipv4Addr> {
    let range = range(network);
    let next = network.next_address.to_bits();
    let start = if range.contains(&next) { next } else { *range.start() };
    (start..=*range.end())
        .chain(*range.start()..start)
        .find(|address| !used.contains(address))
        .map(Ipv4Addr::from_bits)
}

/// Returns the start of the search after `address` was allocated.
pub(in crate::manager) fn after(network: &Network, address: Ipv4Addr) -> Ipv4Addr {
    let range = range(network);
    let next = address.to_bits() + 1;
    Ipv4Addr::from_bits(if range.contains(&next) { next } else { *range.start() })
}

/// Describes the user of an address of a network.
pub(in crate::manager) fn user_of(
    state: &ClusterState,
    network: &Network,
    node: &Id,
    ip: Ipv4Addr,
) -> Option<String> {
    if network.gateway == ip {
        return Some("its gateway".to_owned());
    }
    if let Some((name, _)) = network.aux_addresses.iter().find(|(_, address)| **address == ip) {
        return Some(format!("its auxiliary address {name}"));
    }
    if let Some(node) = state.nodes.values().find(|n| network.ingress && n.ingress_ip == ip) {
        return Some(format!("node {}", node.name));
    }
    let on_network = |s: &&crate::model::Service| {
        s.networks.iter().any(|on| on.network == network.id && on.vip == Some(ip))
    };
    if let Some(service) = state.services.values().find(on_network) {
        return Some(format!("service {}", service.name));
    }
    state
        .endpoints_of(&network.id)
        .find(|e| e.ip == ip && (!network.is_local() || e.node == *node))
        .map(|e| format!("container {}", e.name))
}

/// Describes the users of the addresses of a full network.
pub(in crate::manager) fn exhausted_error(
    state: &ClusterState,
    network: &Network,
    node: &Id,
) -> ApiError {
    let endpoints =
        state.endpoints_of(&network.id).filter(|e| !network.is_local() || e.node == *node).count();
    let vips = state
        .services
        .values()
        .flat_map(|s| &s.networks)
        .filter(|on| on.network == network.id && on.vip.is_some())
        .count();
    let range = range(network);
    let size = u64::from(*range.end()) + 1 - u64::from(*range.start());
    let of = network.ip_range.unwrap_or(network.subnet);
    let nodes = if network.ingress { state.nodes.len() } else { 0 };
    exhausted(format!(
        "network {} has no free address: all {size} of {of} are in use ({endpoints} by \
         containers, {vips} by services, {nodes} by nodes, {} kept for the gateway and auxiliary \
         addresses)",
        network.name,
        1 + network.aux_addresses.len(),
    ))
    .hint("remove containers or services from it, or make a network with a larger --subnet")
}
