//! IPv6 addresses of dual-stack networks, like [`super::ipam`] for IPv4. The subnets are too large
//! to run out of addresses, and IPv6 has no broadcast address to leave out.

use std::{collections::HashSet, net::Ipv6Addr, ops::RangeInclusive};

use ipnet::{IpNet, Ipv6Net};
use overlay_common::INGRESS_VNI;

use crate::{
    api::{ApiError, NetworkCreate, NetworkCreateIpv6},
    manager::error::{conflict, exhausted, invalid},
    model::{ClusterState, Id, Network, NetworkIpv6, Node, Service},
};

/// Prefix lengths of a network. The longest one leaves a gateway and two addresses for containers.
const PREFIXES: RangeInclusive<u8> = 16..=126;
/// Prefix length of a network without a given subnet (RFC 4193, section 3.1).
const DEFAULT_PREFIX: u8 = 64;
/// Smallest MTU of a link with IPv6 (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;

/// Ranges that containers may use: global unicast (RFC 4291, section 2.4, as far as it is assigned)
/// and unique local addresses (RFC 4193).
const FOR_HOSTS: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
];

/// Returns the IPv6 side that `request` asks for, for the network with `vni`.
pub(in crate::manager) fn plan(
    state: &ClusterState,
    request: &NetworkCreate,
    vni: u32,
    asked: NetworkCreateIpv6,
) -> Result<NetworkIpv6, ApiError> {
    if request.ingress {
        return Err(invalid("the ingress network has IPv4 only").hint(
            "make it without --ipv6: published ports answer over IPv6 where their service is on a \
             network with IPv6",
        ));
    }
    if let Some(mtu) = request.mtu.filter(|mtu| *mtu < LEAST_MTU) {
        return Err(invalid(format!(
            "MTU {mtu} is too small for IPv6, which needs {LEAST_MTU} (RFC 8200, section 5)"
        ))
        .hint("choose a larger MTU, or make the network without --ipv6"));
    }
    let subnet = match asked.subnet {
        Some(subnet) => {
            check_subnet(subnet)?;
            check_free(state, &request.name, subnet)?;
            subnet
        }
        None => free_subnet(state, vni)?,
    };
    let usable = usable(subnet);
    let gateway = asked.gateway.map_or(*usable.start(), Ipv6Addr::to_bits);
    if !usable.contains(&gateway) {
        let gateway = Ipv6Addr::from_bits(gateway);
        return Err(invalid(format!(
            "gateway {gateway} is not an address for hosts in subnet {subnet}"
        )));
    }
    let next_address = Ipv6Addr::from_bits(*usable.start());
    Ok(NetworkIpv6 { subnet, gateway: Ipv6Addr::from_bits(gateway), next_address })
}

fn check_subnet(subnet: Ipv6Net) -> Result<(), ApiError> {
    if subnet.addr() != subnet.network() {
        return Err(invalid(format!("subnet {subnet} has bits set beyond its prefix"))
            .hint(format!("write {}", subnet.trunc())));
    }
    if !PREFIXES.contains(&subnet.prefix_len()) {
        return Err(invalid(format!(
            "subnet {subnet} is too large or too small: its prefix must have {} to {} bits",
            PREFIXES.start(),
            PREFIXES.end()
        )));
    }
    let mut ranges = FOR_HOSTS.iter().filter_map(|(a, prefix)| Ipv6Net::new(*a, *prefix).ok());
    if !ranges.any(|range| range.contains(&subnet)) {
        return Err(invalid(format!(
            "subnet {subnet} is not for hosts: it must lie in 2000::/3 (global unicast) or in \
             fc00::/7 (unique local)"
        ))
        .hint("leave it out for a unique local /64, or choose one of fd00::/8"));
    }
    Ok(())
}

fn overlaps(network: &Network, subnet: Ipv6Net) -> bool {
    let other = network.ipv6.as_ref().map(|ipv6| ipv6.subnet);
    other.is_some_and(|other| other.contains(&subnet) || subnet.contains(&other))
}

/// Rejects a subnet that overlaps another network or contains a node's VTEP.
fn check_free(state: &ClusterState, name: &str, subnet: Ipv6Net) -> Result<(), ApiError> {
    let inside = |n: &&Node| IpNet::V6(subnet).contains(&n.data_path_addr);
    if let Some(node) = state.nodes.values().find(inside) {
        return Err(conflict(format!(
            "subnet {subnet} of network {name} contains {}, the data-path address of node {}",
            node.data_path_addr, node.name
        ))
        .hint("choose a --subnet apart from the hosts' own network"));
    }
    match state.networks.values().find(|n| overlaps(n, subnet)) {
        None => Ok(()),
        Some(other) => Err(conflict(format!(
            "subnet {subnet} of network {name} overlaps the IPv6 subnet of network {}",
            other.name
        ))
        .hint("choose another --subnet, or leave it out for a unique local /64")),
    }
}

/// Returns a unique local /64 (RFC 4193). Its global ID is the cluster's. Its subnet ID is the last
/// 16 bits of the VNI, or the next free one.
fn free_subnet(state: &ClusterState, vni: u32) -> Result<Ipv6Net, ApiError> {
    let [a, b, c, d, e] = global_id(state);
    // The first network after ingress has number 1.
    let first = vni.wrapping_sub(INGRESS_VNI) & 0xffff;
    let at = |id: u32| {
        let [.., high, low] = (id & 0xffff).to_be_bytes();
        let octets = [0xfd, a, b, c, d, e, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
        Ipv6Net::new(octets.into(), DEFAULT_PREFIX).ok()
    };
    (first..=first + 0xffff)
        .filter_map(at)
        .find(|subnet| !state.networks.values().any(|n| overlaps(n, *subnet)))
        .ok_or_else(|| {
            exhausted("every unique local /64 of this cluster is in use")
                .hint("give a subnet of your own with --subnet, or remove networks")
        })
}

/// Returns 40 bits that differ between clusters (RFC 4193, section 3.2). They are random, because
/// they are a digest of the cluster's random id.
fn global_id(state: &ClusterState) -> [u8; 5] {
    use sha2::Digest as _;
    let cluster = state.cluster.as_ref().map_or("", |cluster| cluster.id.as_str());
    let digest = sha2::Sha256::digest(cluster);
    std::array::from_fn(|i| digest[i])
}

/// Returns the addresses for hosts: all but the first one, which every router has (RFC 4291,
/// section 2.6.1).
pub(in crate::manager) fn usable(subnet: Ipv6Net) -> RangeInclusive<u128> {
    subnet.network().to_bits() + 1..=subnet.broadcast().to_bits()
}

/// Returns every IPv6 address of a network in use.
pub(in crate::manager) fn used(state: &ClusterState, network: &Network) -> HashSet<u128> {
    let gateway = network.ipv6.as_ref().map(|ipv6| ipv6.gateway);
    let vips = state
        .services
        .values()
        .flat_map(|s| &s.networks)
        .filter(|on| on.network == network.id)
        .filter_map(|on| on.vip6);
    let endpoints = state.endpoints_of(&network.id).filter_map(|e| e.ip6);
    gateway.into_iter().chain(vips).chain(endpoints).map(Ipv6Addr::to_bits).collect()
}

/// Returns the next free address. The search starts at the end of the last one, so that a freed
/// address is not reused at once.
pub(in crate::manager) fn next_free(ipv6: &NetworkIpv6, used: &HashSet<u128>) -> Option<Ipv6Addr> {
    let usable = usable(ipv6.subnet);
    let start = ipv6.next_address.to_bits().clamp(*usable.start(), *usable.end());
    (start..=*usable.end())
        .chain(*usable.start()..start)
        .find(|address| !used.contains(address))
        .map(Ipv6Addr::from_bits)
}

/// Returns the start of the search after `address` was allocated.
pub(in crate::manager) fn after(subnet: Ipv6Net, address: Ipv6Addr) -> Ipv6Addr {
    let usable = usable(subnet);
    match address.to_bits().checked_add(1).filter(|next| usable.contains(next)) {
        Some(next) => Ipv6Addr::from_bits(next),
        None => Ipv6Addr::from_bits(*usable.start()),
    }
}

/// Describes the user of an address of a network.
pub(in crate::manager) fn user_of(
    state: &ClusterState,
    network: &Id,
    ipv6: &NetworkIpv6,
    ip: Ipv6Addr,
) -> Option<String> {
    if ipv6.gateway == ip {
        return Some("its gateway".to_owned());
    }
    let has_it =
        |s: &&Service| s.networks.iter().any(|on| on.network == *network && on.vip6 == Some(ip));
    if let Some(service) = state.services.values().find(has_it) {
        return Some(format!("service {}", service.name));
    }
    let endpoint = state.endpoints_of(network).find(|e| e.ip6 == Some(ip));
    endpoint.map(|e| format!("container {}", e.name))
}
