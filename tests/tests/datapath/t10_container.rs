//! `from_container` on packets without translation: the packets that an endpoint may send, and
//! their destinations.

use std::net::Ipv4Addr;

use overlay_common::{Reason, maps::ENDPOINT_FLAG_HOST};
use overlay_tests::{
    of_both_families,
    rig::{DROP, Family, IFINDEX, OTHER_VNI, REDIRECT, Rig, VNI, mac, packets::*},
};

of_both_families! {
    gateway_and_vip_answer_ping_where_it_is_sent,
    a_packet_to_an_endpoint_of_this_node_is_delivered_unchanged,
    an_unresolved_neighbour_is_left_to_the_kernel,
    a_node_without_a_route_is_a_counted_drop,
    nobody_sends_as_another,
    an_interface_that_is_not_known_sends_nothing,
}

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

/// A network with an endpoint that sends, one beside it, one on the peer and a VIP.
fn rig(family: Family) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, NEIGHBOUR, 0, false);
    rig.remote(VNI, FAR, 0);
    rig.service(7, VNI, VIP, &[]);
    rig.stack(family, VNI, 1);
    rig
}

#[test]
fn arp_is_answered_for_endpoints_gateway_and_vip() {
    let mut rig = rig(Family::Ipv4);
    for target in [NEIGHBOUR, FAR, GATEWAY, VIP] {
        let ran = rig.run("from_container", &arp_request(ME, target));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::ArpAnswered][..]));
        let mut reply = mac(ME).bytes().to_vec();
        reply.extend(mac(target).bytes());
        reply.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
        reply.extend(mac(target).bytes());
        reply.extend(target.octets());
        reply.extend(mac(ME).bytes());
        reply.extend(ME.octets());
        assert_eq!(ran.packet, reply, "reply for {target}");
    }
}

#[test]
fn arp_for_nobody_for_oneself_or_in_anothers_name_is_dropped() {
    let mut rig = rig(Family::Ipv4);
    let ran = rig.run("from_container", &arp_request(ME, NOBODY));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::ArpUnknown][..]));
    let ran = rig.run("from_container", &arp_request(ME, ME));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::ArpUnknown][..]));
    let mut forged = arp_request(NEIGHBOUR, FAR);
    forged[6..12].copy_from_slice(&mac(ME).bytes());
    let ran = rig.run("from_container", &forged);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::SpoofedSource][..]));
}

fn gateway_and_vip_answer_ping_where_it_is_sent(family: Family) {
    let mut rig = rig(family);
    for target in [GATEWAY, VIP] {
        let ran = rig.run("from_container", &family.ping(ME, target));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::EchoAnswered][..]));
        let seen = family.see(&ran.packet);
        assert_eq!((seen.from.0, seen.to.0), (family.ip(target), family.ip(ME)));
        assert_eq!(seen.macs, (mac(target).bytes(), mac(ME).bytes()));
        let reply = if family == Family::Ipv4 { 0 } else { 129 };
        assert_eq!(ran.packet[14 + family.header()], reply, "an echo reply");
        assert_eq!(seen.payload, b"0123456789");
    }
}

fn a_packet_to_an_endpoint_of_this_node_is_delivered_unchanged(family: Family) {
    let mut rig = rig(family);
    for packet in [
        family.tcp((ME, 40_000), (NEIGHBOUR, 80), Tcp::Syn),
        family.udp((ME, 40_000), (NEIGHBOUR, 53), b"question"),
        family.ping(ME, NEIGHBOUR),
    ] {
        let ran = rig.run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
        assert_eq!(ran.packet, packet);
    }
}

fn an_unresolved_neighbour_is_left_to_the_kernel(family: Family) {
    let mut rig = rig(family);
    let far_node = Ipv4Addr::new(172, 16, 1, 12);
    rig.set(|state| {
        let all = state.endpoints.values_mut().chain(state.endpoints6.values_mut());
        for endpoint in all.filter(|endpoint| endpoint.mac == mac(FAR)) {
            endpoint.node = far_node.into();
        }
    });
    let ran = rig.run("from_container", &family.ping(ME, FAR));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    assert_eq!(ran.packet[..12], [0; 12], "no MACs yet: bpf_redirect_neigh writes them");
}

fn a_node_without_a_route_is_a_counted_drop(family: Family) {
    let mut rig = rig(family);
    rig.set(|state| {
        let all = state.endpoints.values_mut().chain(state.endpoints6.values_mut());
        for endpoint in all.filter(|endpoint| endpoint.mac == mac(FAR)) {
            endpoint.node = Ipv4Addr::new(192, 0, 2, 1).into();
        }
    });
    let ran = rig.run("from_container", &family.ping(ME, FAR));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoRoute][..]));
}

fn nobody_sends_as_another(family: Family) {
    let mut rig = rig(family);
    let ran = rig.run("from_container", &family.ping(NEIGHBOUR, FAR));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::SpoofedMac][..]));
    let mut forged = family.ping(NEIGHBOUR, FAR);
    forged[6..12].copy_from_slice(&mac(ME).bytes());
    let ran = rig.run("from_container", &forged);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::SpoofedSource][..]));
}

#[test]
fn networks_do_not_see_each_other() {
    let mut rig = rig(Family::Ipv4);
    let stranger = Ipv4Addr::new(10, 0, 2, 5);
    rig.network(OTHER_VNI, 2);
    rig.local(OTHER_VNI, stranger, 0, false);
    let ran = rig.run("from_container", &ping(ME, stranger));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
    let ran = rig.run("from_container", &tcp((ME, 40_000), (stranger, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
    // Even with the same addresses: the sender's interface decides the network.
    rig.local(OTHER_VNI, NEIGHBOUR, 0, false);
    rig.set(|state| state.endpoints.retain(|key, _| key.vni != VNI || key.ip != NEIGHBOUR.into()));
    let ran = rig.run("from_container", &ping(ME, NEIGHBOUR));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoEndpoint][..]));
}

#[test]
fn what_goes_nowhere_says_why() {
    let mut rig = rig(Family::Ipv4);
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let ipv6 = {
        let mut frame = udp((ME, 1), (FAR, 2), &[0; 40]);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame
    };
    for (packet, reason) in [
        (ping(ME, NOBODY), Reason::NoEndpoint),
        (ping(ME, outside), Reason::NoRoute),
        (udp((ME, 1), (outside, 53), b"?"), Reason::NoRoute),
        (udp((ME, 1), (Ipv4Addr::new(224, 0, 0, 251), 5353), b"?"), Reason::Multicast),
        (udp((ME, 1), (Ipv4Addr::BROADCAST, 67), b"?"), Reason::Multicast),
        (tcp((ME, 1), (GATEWAY, 22), Tcp::Syn), Reason::GatewayPort),
        (tcp((ME, 1), (VIP, 22), Tcp::Rst), Reason::NoBackend),
        (ipv6, Reason::UnsupportedProtocol),
    ] {
        let ran = rig.run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]));
    }
}

fn an_interface_that_is_not_known_sends_nothing(family: Family) {
    let mut rig = rig(family);
    rig.set(|state| {
        let _ = state.links.remove(&IFINDEX);
    });
    let ran = rig.run("from_container", &family.ping(ME, NEIGHBOUR));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnknownLink][..]));
}

#[test]
fn delivery_to_the_host_itself_goes_up_its_stack() {
    let mut rig = rig(Family::Ipv4);
    let host = Ipv4Addr::new(10, 0, 1, 200);
    rig.local(VNI, host, ENDPOINT_FLAG_HOST, false);
    let ran = rig.run("from_container", &ping(ME, host));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredHost][..]));
}
