//! The part of `compile` about the hosts' IPv6 addresses: on which of them published ports answer
//! here, and which the other nodes say that they have.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::Ipv6Addr,
};

use ipnet::Ipv6Net;
use overlay_common::{
    Ip6, hash,
    maps::{FRONTENDS6_ENTRIES, Frontend6Key, Subnet6Key},
};

use super::facts::LocalFacts;
use crate::{
    datapath::DatapathState,
    model::{ClusterState, Node},
};

/// Fills `local_addrs6`, `subnets6` and `frontends6` of a node.
pub fn compile(state: &ClusterState, me: &Node, facts: &LocalFacts, out: &mut DatapathState) {
    let own = facts.addresses6.iter();
    // A link-local address means a host only together with an interface, which packets do not name.
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

/// The addresses of the other nodes, except those that belong to this host or to a network. No
/// reply may leave under such an address, and the programs look only for the addresses here.
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
            let is_full = out.frontends6.len() >= FRONTENDS6_ENTRIES;
            let key = Frontend6Key { node: node.vtep(), number: hash::of_node(&address) };
            match out.frontends6.entry(key) {
                Entry::Occupied(other) if *other.get() != address => ambiguous.push(key),
                Entry::Occupied(_) => {}
                Entry::Vacant(_) if is_full => left_out += 1,
                Entry::Vacant(room) => drop(room.insert(address)),
            }
        }
    }
    // Replies to requests at either address go back through its node.
    for key in ambiguous {
        out.frontends6.remove(&key);
    }
    if left_out > 0 {
        tracing::debug!(
            "the map frontends6 has no room for {left_out} IPv6 addresses of other nodes"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{TestCluster, dual_stack, id};

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    /// Has node `h2` say that it has these addresses.
    fn says(cluster: &mut TestCluster, addresses6: Vec<Ipv6Addr>) {
        cluster.state.nodes.get_mut(&id("h2")).expect("a node").addresses6 = addresses6;
    }

    /// The compiled state of `h1`, if its host has these addresses.
    fn compiled(cluster: &TestCluster, addresses6: &[Ipv6Addr]) -> DatapathState {
        let facts = LocalFacts { addresses6: addresses6.to_vec(), ..LocalFacts::default() };
        let mut out = DatapathState::default();
        compile(&cluster.state, &cluster.state.nodes[&id("h1")], &facts, &mut out);
        out
    }

    #[test]
    fn the_addresses_that_other_nodes_say_they_have_are_known_by_number() {
        let mut cluster = TestCluster::with_nodes(2);
        cluster.network("dual", "10.0.1.0/24", dual_stack);
        cluster.network("single", "10.0.2.0/24", |_| {});
        let network = cluster.state.networks[&id("dual")].clone();
        let subnet = network.ipv6.expect("IPv6").subnet;
        let (own, theirs, shared) = (ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8::3"));
        let inside = [subnet.network(), subnet.broadcast()];
        cluster.state.nodes.get_mut(&id("h1")).expect("a node").addresses6 = vec![own];
        says(&mut cluster, [&[theirs, shared][..], &inside].concat());
        let state = compiled(&cluster, &[own, shared]);
        let node = cluster.state.nodes[&id("h2")].vtep();
        let number = hash::of_node(&theirs.into());
        let expected = BTreeMap::from([(Frontend6Key { node, number }, theirs.into())]);
        assert_eq!(state.frontends6, expected, "neither this host's nor those inside");
        let key = Subnet6Key { prefix: subnet.prefix_len().into(), ip: subnet.network().into() };
        assert_eq!(state.subnets6, BTreeMap::from([(key, network.vni)]));
    }

    #[test]
    fn two_addresses_of_a_node_with_one_number_are_left_out() {
        // They differ in two words of the address: addresses that differ in only one word never
        // have the same id.
        let numbered = |n: u128| {
            let last = n.wrapping_mul(0x9e37_79b1) & 0xffff_ffff;
            Ipv6Addr::from_bits(0x2001_0db8 << 96 | n << 32 | last)
        };
        let mut seen = std::collections::HashMap::new();
        let (a, b) = (1..10_000_000)
            .find_map(|n| {
                let number = hash::of_node(&numbered(n).into());
                seen.insert(number, n).map(|first| (numbered(first), numbered(n)))
            })
            .expect("two with one number");
        let mut cluster = TestCluster::with_nodes(2);
        let other = ip("fd00::2");
        says(&mut cluster, vec![a, other, b]);
        let held: Vec<_> = compiled(&cluster, &[]).frontends6.into_values().collect();
        assert_eq!(held, [other.into()]);
    }

    #[test]
    fn more_addresses_than_the_map_takes_are_left_out() {
        let mut cluster = TestCluster::with_nodes(2);
        says(&mut cluster, (1..20_000).map(|n| Ipv6Addr::from_bits(1 << 100 | n)).collect());
        let held = compiled(&cluster, &[]).frontends6.len();
        // Except addresses that happen to have the same id.
        assert!((FRONTENDS6_ENTRIES - 10..=FRONTENDS6_ENTRIES).contains(&held), "{held}");
    }
}
