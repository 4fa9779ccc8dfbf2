//! The part of `compile` about the hosts' IPv6 addresses: on which of them published ports answer here, and which
//! the other nodes say that they have.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::Ipv6Addr,
};

use ipnet::Ipv6Net;
use overlay_common::{
    Ip6, hash,
    maps::{ASKED6_ENTRIES, Asked6Key, Subnet6Key},
};

use super::LocalFacts;
use crate::{
    datapath::DatapathState,
    model::{ClusterState, Node},
};

/// Fills `local_addrs6`, `subnets6` and `asked6` of a node.
pub(super) fn compile(
    state: &ClusterState,
    me: &Node,
    facts: &LocalFacts,
    out: &mut DatapathState,
) {
    let own = facts.addresses6.iter();
    // Without an interface a link-local address is nobody's, and a packet's is not told apart.
    let own = own.filter(|ip| !ip.is_loopback() && !ip.is_unicast_link_local());
    out.local_addrs6.extend(own.map(|address| (Ip6::from(*address), 1)));
    // Of all networks, as those of IPv4.
    for network in state.networks.values() {
        if let Some(ipv6) = &network.ipv6 {
            let prefix = u32::from(ipv6.subnet.prefix_len());
            let key = Subnet6Key { prefix, ip: ipv6.subnet.network().into() };
            out.subnets6.insert(key, network.vni);
        }
    }
    add_asked(state, me, out);
}

/// The addresses of the other nodes, but for those that are this host's or in a network, which no reply may
/// leave under: the programs look for nothing but what is here.
fn add_asked(state: &ClusterState, me: &Node, out: &mut DatapathState) {
    // No two overlap: an address is in the last one that begins no later, or in none.
    let subnets = state.networks.values().filter_map(|network| Some(network.ipv6.as_ref()?.subnet));
    let subnets: BTreeMap<Ipv6Addr, Ipv6Net> =
        subnets.map(|subnet| (subnet.network(), subnet)).collect();
    let is_inside = |ip: &Ipv6Addr| {
        subnets.range(..=*ip).next_back().is_some_and(|(_, subnet)| subnet.contains(ip))
    };
    let mut ambiguous = Vec::new();
    let mut left_out = 0_usize;
    for node in state.nodes.values().filter(|node| node.id != me.id) {
        for address in node.addresses6.iter().filter(|ip| !is_inside(ip)) {
            let address = Ip6::from(*address);
            if out.local_addrs6.contains_key(&address) {
                continue;
            }
            let is_full = out.asked6.len() >= ASKED6_ENTRIES;
            let key = Asked6Key { node: node.vtep(), number: hash::of_node(&address) };
            match out.asked6.entry(key) {
                Entry::Occupied(other) if *other.get() != address => ambiguous.push(key),
                Entry::Occupied(_) => {}
                Entry::Vacant(_) if is_full => left_out += 1,
                Entry::Vacant(room) => drop(room.insert(address)),
            }
        }
    }
    // Replies to what either was asked go back through their node.
    for key in ambiguous {
        out.asked6.remove(&key);
    }
    if left_out > 0 {
        tracing::debug!("the map asked6 has no room for {left_out} IPv6 addresses of other nodes");
    }
}
