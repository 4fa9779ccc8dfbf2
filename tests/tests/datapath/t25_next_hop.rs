//! The cache of paths to other nodes: kept, and changed with the host's routes, neighbours and
//! links.

use std::{net::Ipv4Addr, process::Command, time::Duration};

use anyhow::ensure;
use overlay_common::Reason;
use overlay_tests::{
    eventually,
    rig::{DROP, NODE_MAC, PEER_MAC, REDIRECT, Ran, Rig, VNI, packets::*},
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, HERE, 0, true);
    rig.remote(VNI, FAR, 0);
    rig
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split_whitespace()).status().expect("ip runs");
    assert!(status.success(), "ip {line}: {status}");
}

/// Sends packets with `payload` bytes of UDP payload until one meets `end`.
fn send_until(rig: &mut Rig, payload: usize, what: &str, end: impl Fn(&Ran) -> bool) {
    let frame = udp((HERE, 40_000), (FAR, 53), &vec![0; payload]);
    eventually(what, Duration::from_secs(30), || {
        let ran = rig.run("from_container", &frame);
        ensure!(end(&ran), "{:?}, {:?}", ran.counted, see(&ran.packet).macs);
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
}

fn is_to(ran: &Ran, destination: [u8; 6]) -> bool {
    ran.verdict == REDIRECT
        && ran.counted == [Reason::Encapsulated]
        && see(&ran.packet).macs == (NODE_MAC, destination)
}

#[test]
fn packets_follow_a_neighbour_to_its_new_mac() {
    let mut rig = rig();
    send_until(&mut rig, 8, "the neighbour's MAC", |ran| is_to(ran, PEER_MAC));
    ip("neigh replace 172.16.1.11 lladdr 02:00:00:00:00:77 dev u0 nud permanent");
    let moved = [2, 0, 0, 0, 0, 0x77];
    send_until(&mut rig, 8, "its new MAC", |ran| is_to(ran, moved));
}

#[test]
fn packets_follow_routes_to_another_gateway_and_to_none() {
    let mut rig = rig();
    send_until(&mut rig, 8, "the neighbour's MAC", |ran| is_to(ran, PEER_MAC));
    ip("route add 172.16.1.11/32 via 172.16.1.100 dev u0");
    let gateway = overlay_tests::rig::CLIENT_MAC;
    send_until(&mut rig, 8, "the gateway's MAC", |ran| is_to(ran, gateway));
    ip("route replace unreachable 172.16.1.11/32");
    send_until(&mut rig, 8, "no route", |ran| {
        (ran.verdict, &ran.counted[..]) == (DROP, &[Reason::NoRoute])
    });
    ip("route del unreachable 172.16.1.11/32");
    send_until(&mut rig, 8, "the neighbour's MAC again", |ran| is_to(ran, PEER_MAC));
}

#[test]
fn a_smaller_mtu_of_the_link_is_noticed() {
    let mut rig = rig();
    send_until(&mut rig, 1300, "a large packet on its way", |ran| is_to(ran, PEER_MAC));
    ip("link set u0 mtu 1300");
    send_until(&mut rig, 1300, "the packet found too big", |ran| {
        ran.counted == [Reason::TooBigAnswered]
    });
    send_until(&mut rig, 8, "a small packet on its way", |ran| is_to(ran, PEER_MAC));
}

#[test]
fn the_mtu_holds_for_every_packet_and_not_only_for_the_first() {
    let mut rig = rig();
    // 1500 less the tunnel's 50, IPv4's 20 and UDP's 8.
    for payload in [8, 1422, 1423, 8, 1423] {
        let ran = rig.run("from_container", &udp((HERE, 40_000), (FAR, 53), &vec![0; payload]));
        let fits = payload <= 1422;
        assert_eq!(is_to(&ran, PEER_MAC), fits, "{payload} bytes: {:?}", ran.counted);
        assert_eq!(
            ran.counted == [Reason::TooBigAnswered],
            !fits,
            "{payload} bytes: {:?}",
            ran.counted
        );
    }
}

#[test]
fn what_the_kernel_must_resolve_is_asked_each_time() {
    let mut rig = rig();
    ip("neigh del 172.16.1.11 dev u0");
    send_until(&mut rig, 8, "an unresolved neighbour", is_unresolved);
    ip("neigh add 172.16.1.11 lladdr 02:00:00:00:00:0b dev u0 nud permanent");
    let ran = rig.run("from_container", &udp((HERE, 40_000), (FAR, 53), b""));
    assert!(is_to(&ran, PEER_MAC), "{:?}", ran.counted);
}

fn is_unresolved(ran: &Ran) -> bool {
    ran.verdict == REDIRECT && see(&ran.packet).macs == ([0; 6], [0; 6])
}
