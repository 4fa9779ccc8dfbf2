//! The caches of endpoints and interfaces: entries are kept, and dropped as soon as the maps
//! change.

use std::net::Ipv4Addr;

use overlay_common::{
    Reason,
    maps::{CachedEndpoint, ENDPOINT_CACHE_ENTRIES, EndpointKey},
};
use overlay_tests::rig::{DROP, REDIRECT, Rig, VNI, packets::*};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, HERE, 0, true);
    rig.local(VNI, NEAR, 0, false);
    rig.remote(VNI, FAR, 0);
    rig
}

/// The verdict and the counters of a packet between two addresses, always the same packet.
fn sent(rig: &mut Rig, to: Ipv4Addr) -> (u32, Vec<Reason>) {
    let mut outcomes = (0..8).map(|_| {
        let ran = rig.run("from_container", &udp((HERE, 40_000), (to, 53), b""));
        (ran.verdict, ran.counted)
    });
    let first = outcomes.next().expect("eight");
    assert!(outcomes.all(|other| other == first), "the first is {first:?}");
    first
}

fn arrived(rig: &mut Rig) -> (u32, Vec<Reason>) {
    let inner = udp((FAR, 40_000), (HERE, 53), b"");
    let mut outcomes = (0..8).map(|_| {
        let ran = rig.run("from_underlay", &vxlan(VNI, &inner));
        (ran.verdict, ran.counted)
    });
    let first = outcomes.next().expect("eight");
    assert!(outcomes.all(|other| other == first), "the first is {first:?}");
    first
}

#[test]
fn an_endpoint_that_moves_is_followed_at_once() {
    let mut rig = rig();
    for _ in 0..3 {
        assert_eq!(sent(&mut rig, FAR), (REDIRECT, vec![Reason::Encapsulated]));
        assert_eq!(arrived(&mut rig), (REDIRECT, vec![Reason::Decapsulated]));
        rig.local(VNI, FAR, 0, false);
        assert_eq!(sent(&mut rig, FAR), (REDIRECT, vec![Reason::DeliveredLocal]));
        assert_eq!(arrived(&mut rig), (DROP, vec![Reason::SpoofedInnerSource]));
        rig.remote(VNI, FAR, 0);
    }
}

#[test]
fn an_endpoint_that_is_removed_is_forgotten_at_once_and_known_again_when_it_is_back() {
    let mut rig = rig();
    for _ in 0..3 {
        assert_eq!(sent(&mut rig, NEAR), (REDIRECT, vec![Reason::DeliveredLocal]));
        rig.set(|state| {
            state.endpoints.remove(&EndpointKey { vni: VNI, ip: NEAR.into() });
        });
        assert_eq!(sent(&mut rig, NEAR), (DROP, vec![Reason::NoEndpoint]));
        rig.local(VNI, NEAR, 0, false);
    }
}

#[test]
fn an_interface_that_changes_hands_may_send_as_its_new_owner_only() {
    let mut rig = rig();
    assert_eq!(sent(&mut rig, NEAR), (REDIRECT, vec![Reason::DeliveredLocal]));
    rig.local(VNI, Ipv4Addr::new(10, 0, 1, 9), 0, true);
    assert_eq!(sent(&mut rig, NEAR), (DROP, vec![Reason::SpoofedMac]));
    rig.set(|state| state.links.clear());
    assert_eq!(sent(&mut rig, NEAR), (DROP, vec![Reason::UnknownLink]));
}

#[test]
fn endpoints_that_share_a_place_are_told_apart() {
    let mut rig = rig();
    let place = |ip: Ipv4Addr| CachedEndpoint::index(&EndpointKey { vni: VNI, ip: ip.into() });
    let of_far = place(FAR);
    let other = (1..=250u8)
        .flat_map(|c| (1..=250u8).map(move |d| Ipv4Addr::new(10, 0, c, d)))
        .find(|ip| *ip != FAR && place(*ip) == of_far);
    let other =
        other.unwrap_or_else(|| panic!("{ENDPOINT_CACHE_ENTRIES} places for 62,500 addresses"));
    rig.local(VNI, other, 0, false);
    for _ in 0..3 {
        assert_eq!(sent(&mut rig, FAR), (REDIRECT, vec![Reason::Encapsulated]));
        assert_eq!(sent(&mut rig, other), (REDIRECT, vec![Reason::DeliveredLocal]));
    }
}
