//! Addresses: unique, allocated in sequence, until all are in use, and then a clear error.

use std::{
    collections::{BTreeMap, HashSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use proptest::prelude::*;

use super::super::{
    ipam,
    testing::{World, refused},
};
use crate::{
    api::{EndpointCreate, ErrorCode},
    model::{ClusterState, Driver, Id, Multicast, Network},
};

fn network(subnet: Ipv4Net, ip_range: Option<Ipv4Net>) -> Network {
    Network {
        id: Id::random(),
        name: "n".to_owned(),
        created: jiff::Timestamp::UNIX_EPOCH,
        driver: Driver::Overlay,
        vni: 5000,
        subnet,
        ip_range,
        gateway: subnet.hosts().next().expect("an address"),
        aux_addresses: BTreeMap::new(),
        mtu: None,
        multicast: Multicast::Drop,
        internal: false,
        attachable: true,
        ingress: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        next_address: Ipv4Addr::UNSPECIFIED,
        ipv6: None,
    }
}

proptest! {
    /// Allocates and frees addresses at random, and compares with the simplest possible model.
    #[test]
    fn addresses_are_unique_in_series_and_all_found(
        prefix in 24_u8..=30,
        half in any::<bool>(),
        steps in prop::collection::vec(prop::option::weighted(0.3, any::<prop::sample::Index>()), 1..400),
    ) {
        let subnet = Ipv4Net::new(Ipv4Addr::new(10, 1, 2, 0), prefix).expect("a subnet");
        let range = Ipv4Net::new(subnet.addr(), prefix + 1).expect("a subnet");
        let mut network = network(subnet, half.then_some(range));
        let bounds = ipam::range(&network);
        let mut used = HashSet::from([network.gateway.to_bits()]);
        let mut taken: Vec<u32> = vec![];
        let mut last = None;
        for step in steps {
            if let Some(index) = step {
                if !taken.is_empty() {
                    used.remove(&taken.swap_remove(index.index(taken.len())));
                }
                continue;
            }
            let free = bounds.clone().filter(|ip| !used.contains(ip)).count();
            match ipam::next_free(&network, &used) {
                None => prop_assert_eq!(free, 0),
                Some(address) => {
                    let bits = address.to_bits();
                    prop_assert!(bounds.contains(&bits));
                    prop_assert!(used.insert(bits), "{} was in use", address);
                    // In sequence: no free address lies between the last one and this one.
                    if let Some(last) = last {
                        let between = |ip: &u32| if last < bits {
                            last < *ip && *ip < bits
                        } else {
                            *ip > last || *ip < bits
                        };
                        let skipped = bounds.clone().find(|ip| between(ip) && !used.contains(ip));
                        prop_assert_eq!(skipped, None);
                    }
                    network.next_address = ipam::after(&network, address);
                    last = Some(bits);
                    taken.push(bits);
                }
            }
        }
    }

    /// The first free subnet is free and in the pool, and no subnet before it is free.
    #[test]
    fn the_first_free_subnet_of_a_pool_is_found(
        pool_prefix in 16_u8..=22,
        prefix in 22_u8..=26,
        blocked in prop::collection::vec((0_u32..=0xffff, 20_u8..=30), 0..40),
        host in 0_u32..=0xffff,
    ) {
        let pool = Ipv4Net::new(Ipv4Addr::new(10, 1, 0, 0), pool_prefix).expect("a subnet");
        let mut state = World::new().state;
        state.networks.clear();
        for (offset, prefix) in blocked {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + offset);
            let other = network(Ipv4Net::new(address, prefix).expect("a subnet").trunc(), None);
            state.networks.insert(other.id.clone(), other);
        }
        for node in state.nodes.values_mut() {
            node.data_path_addr =
                Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + host).into();
        }
        let is_free = |net: &Ipv4Net| {
            state.networks.values().all(|n| !ipam::overlap(n.subnet, *net))
                && state.nodes.values().all(|n| !ipnet::IpNet::V4(*net).contains(&n.data_path_addr))
        };
        let expected = pool.subnets(prefix).expect("longer").find(is_free);
        prop_assert_eq!(ipam::free_subnet(&state, pool, prefix).ok(), expected);
    }
}

#[test]
fn a_freed_address_rests_until_the_others_had_their_turn() {
    let mut world = World::new();
    world.subnet("mynet", "10.1.0.0/29").expect("made");
    let first = world.attach("h1", "c1", &["mynet"]).remove(0);
    assert_eq!(first.ip.to_string(), "10.1.0.2");
    world.detach(&first).expect("detached");
    let given: Vec<String> = (2..7)
        .map(|i| world.attach("h1", &format!("c{i}"), &["mynet"])[0].ip.to_string())
        .collect();
    assert_eq!(given, ["3", "4", "5", "6", "2"].map(|last| format!("10.1.0.{last}")));
}

#[test]
fn a_full_network_says_what_fills_it_and_keeps_nothing_half_made() {
    let mut world = World::new();
    world.subnet("small", "10.1.0.0/29").expect("made");
    world.named_network("large");
    world.published("web", &["small"], "").expect("a service");
    for i in 0..4 {
        world.attach("h1", &format!("c{i}"), &["small"]);
    }
    let before = world.state.clone();
    let both = world.container("h1", "c9", &["large", "small"]);
    refused(
        world.endpoint(&both),
        ErrorCode::Exhausted,
        &["small", "4 by containers", "1 by services", "all 6 of 10.1.0.0/29", "larger"],
    );
    assert_eq!(world.state, before);
    refused(world.published("other", &["small"], ""), ErrorCode::Exhausted, &["small"]);
}

#[test]
fn a_fixed_address_must_be_free_and_in_the_subnet() {
    let mut world = World::new();
    world.subnet("mynet", "10.1.0.0/24").expect("made");
    let vip = world.published("web", &["mynet"], "").expect("a service").networks[0].vip;
    let at = |world: &World, name: &str, ip: &str| EndpointCreate {
        ip: Some(ip.parse().expect("an address")),
        ..world.container("h1", name, &["mynet"])
    };
    let request = at(&world, "c1", "10.1.0.77");
    assert_eq!(world.endpoint(&request).expect("made")[0].ip.to_string(), "10.1.0.77");
    let vip = vip.expect("a VIP").to_string();
    for (ip, code, why) in [
        ("10.1.0.77", ErrorCode::Conflict, "container c1"),
        ("10.1.0.1", ErrorCode::Conflict, "its gateway"),
        (vip.as_str(), ErrorCode::Conflict, "service web"),
        ("10.1.0.0", ErrorCode::Invalid, "10.1.0.0/24"),
        ("10.1.0.255", ErrorCode::Invalid, "10.1.0.0/24"),
        ("10.2.0.1", ErrorCode::Invalid, "mynet"),
    ] {
        let request = at(&world, "c2", ip);
        refused(world.endpoint(&request), code, &[ip, why]);
    }
    world.named_network("other");
    let two = EndpointCreate {
        ip: Some("10.1.0.78".parse().expect("an address")),
        ..world.container("h1", "c3", &["mynet", "other"])
    };
    refused(world.endpoint(&two), ErrorCode::Invalid, &["exactly one network"]);
}

#[test]
fn bridge_addresses_are_counted_for_each_node_by_itself() {
    let mut world = World::new();
    world.join("h2", "172.16.1.11").expect("joined");
    let at = |world: &World, node: &str, name: &str| EndpointCreate {
        ip: Some("172.17.0.9".parse().expect("an address")),
        ..world.container(node, name, &["bridge"])
    };
    let one = at(&world, "h1", "same");
    let two = at(&world, "h2", "same");
    let again = at(&world, "h1", "other");
    assert_eq!(
        world.endpoint(&one).expect("made")[0].ip,
        world.endpoint(&two).expect("made")[0].ip
    );
    refused(world.endpoint(&again), ErrorCode::Conflict, &["172.17.0.9", "container same"]);
}

#[test]
fn an_empty_state_has_every_address_free() {
    let network = network("10.1.0.0/24".parse().expect("a subnet"), None);
    let used = ipam::used(&ClusterState::default(), &network, None);
    assert_eq!(used, HashSet::from([network.gateway.to_bits()]));
}
