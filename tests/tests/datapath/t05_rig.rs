//! The rig itself: the next test starts without the map entries of the previous one. It is the only
//! test of its process, so that the second rig gets the object of the first one.

use std::net::Ipv4Addr;

use overlay::datapath::{Filling, LbTable};
use overlay_common::{
    Reason,
    event::{SNAP_MAX, WATCH_ALL, WATCH_CAPTURE, WATCH_DROPS, WATCH_FLOWS, Watch},
    maps::LB_WEIGHTED,
};
use overlay_tests::rig::{DROP, PASS, REDIRECT, Rig, VNI, counter_of, packets::*};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;

fn ask(rig: &mut Rig) -> (u32, Vec<Reason>) {
    let ran = rig.run("from_container", &tcp((HERE, 40_000), (VIP, 80), Tcp::Syn));
    (ran.verdict, ran.counted)
}

fn arrive(rig: &mut Rig) -> (u32, Vec<Reason>) {
    let inner = udp((FAR, 40_000), (HERE, 53), b"");
    let ran = rig.run("from_underlay", &vxlan(VNI, &inner));
    (ran.verdict, ran.counted)
}

#[test]
fn a_rig_leaves_nothing_to_the_next_one() {
    let mut first = Rig::new();
    assert!(!first.is_reused());
    first.network(VNI, 1);
    first.local(VNI, HERE, 0, true);
    first.local(VNI, NEAR, 0, false);
    first.remote(VNI, FAR, 0);
    first.service(SERVICE, VNI, VIP, &[(1, NEAR, true)]);
    first.balance(SERVICE, LB_WEIGHTED, Some(LbTable::new(Filling::Turns, &[(1, 3)])));
    first.way_out();
    let everything = Watch {
        until: u64::MAX,
        flags: WATCH_DROPS | WATCH_FLOWS | WATCH_CAPTURE | WATCH_ALL,
        snap: SNAP_MAX as u32,
        sample: 1,
        ..Watch::default()
    };
    first.watch(everything, &[counter_of(HERE)]);
    assert_eq!(ask(&mut first).0, REDIRECT);
    assert_eq!(arrive(&mut first), (REDIRECT, vec![Reason::Decapsulated]));
    assert_eq!((first.conntrack().len(), first.cursor(SERVICE)), (2, Some(1)));
    drop(first);

    let mut second = Rig::new();
    assert!(second.is_reused(), "the verifier was asked again");
    assert!(second.counters().is_empty() && second.conntrack().is_empty());
    assert_eq!(second.cursor(SERVICE), None);
    assert!(second.events().is_empty(), "what nobody took is gone");
    // Neither the maps nor the programs' caches of them have an endpoint.
    assert_eq!(ask(&mut second), (DROP, vec![Reason::UnknownLink]));
    assert_eq!(arrive(&mut second).0, DROP);
    assert!(second.events().is_empty(), "nobody watches");
    let outside = udp((Ipv4Addr::new(172, 16, 1, 100), 53), (HERE, 61_000), b"");
    assert_eq!(second.run("from_outside", &outside).verdict, PASS);
}
