//! The tunnel on an IPv6 underlay, as far as it differs from IPv4: lengths, marks, address ids of
//! nodes, and packets that are no tunnel packets.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{Reason, maps::ENDPOINT_FLAG_BACKEND};
use overlay_tests::rig::{
    CLIENT, DROP, NODE, PASS, PEER, PEER6, REDIRECT, Rig, VNI, XDP_PASS, ip6, mac, packets::*,
    packets6::*, underlay6::*,
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
/// The most that fits the tunnel.
const FITS: usize = 1430;

fn rig() -> Rig {
    let mut rig = Rig::on_ipv6();
    rig.network(VNI, 1);
    rig.local(VNI, HERE, ENDPOINT_FLAG_BACKEND, true);
    rig.local(VNI, NEIGHBOUR, 0, false);
    rig.remote(VNI, FAR, 0);
    rig.dual_stack(VNI, 1);
    rig
}

fn way(from: Ipv4Addr, to: Ipv4Addr) -> Way {
    let both = |ip: Ipv4Addr| (ip, ip6(1, ip.octets()[3]));
    Way { from: both(from), to: both(to) }
}

#[test]
fn marks_of_congestion_cross_the_tunnel_both_ways() {
    let mut rig = rig();
    for ecn in 0..4 {
        let mut frame = udp6(way(HERE, FAR), (1, 2), b"marked");
        frame[15] |= ecn << 4;
        let ran = rig.run("from_container", &frame);
        assert_eq!(untunnel6(&ran.packet), (VNI, PEER6, ecn, frame));
    }
    let mut packet = vxlan6(VNI, &udp6(way(FAR, NEIGHBOUR), (1, 2), b"marked"));
    packet[15] = 0x30;
    let ran = rig.run("from_underlay6", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::EcnUnexpected][..]));
    packet[TUNNEL6 + 15] |= 0x20;
    let ran = rig.run("from_underlay6", &packet);
    assert_eq!((ran.counted, ran.packet[15] >> 4), (vec![Reason::Decapsulated], 3));
}

#[test]
fn what_does_not_fit_70_bytes_less_is_answered() {
    let mut rig = rig();
    let datagram = |total: usize| udp((HERE, 1), (FAR, 2), &vec![7; total - 28]);
    assert_eq!(rig.run("from_container", &datagram(FITS)).counted, [Reason::Encapsulated]);
    let ran = rig.run("from_container", &datagram(FITS + 1));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::TooBigAnswered][..]));
    assert_eq!((see(&ran.packet).from.0, see(&ran.packet).to.0), (GATEWAY, HERE));
    assert_eq!(u16::from_be_bytes([ran.packet[40], ran.packet[41]]), FITS as u16);
    let ran = rig.run("from_container", &udp6(way(HERE, FAR), (1, 2), &[7; FITS + 1 - 48]));
    assert_eq!(ran.counted, [Reason::TooBigAnswered]);
    assert_eq!(see6(&ran.packet).message[4..8], (FITS as u32).to_be_bytes());
}

#[test]
fn an_address_with_a_nodes_number_is_not_that_node() {
    let mut rig = rig();
    let packet = vxlan6(VNI, &ping(FAR, NEIGHBOUR));
    let ran = rig.run("from_underlay6", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    // The number is a hash, and another address may have the same.
    let (number, other) = (rig.number(PEER), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x77));
    rig.set(|state| {
        state.vteps6.insert(number, other.into());
    });
    let ran = rig.run("from_underlay6", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NotPeer][..]));
}

#[test]
fn what_is_no_tunnel_packet_to_this_node_is_the_hosts() {
    let mut rig = rig();
    let tunnel = vxlan6(VNI, &ping(FAR, NEIGHBOUR));
    let changed = |at: usize, byte: u8| {
        let mut packet = tunnel.clone();
        packet[at] = byte;
        packet
    };
    for (what, packet) in [
        ("another port", changed(57, 1)),
        ("another address", changed(53, 0x77)),
        ("TCP", changed(20, 6)),
        ("a tunnel packet over IPv4", vxlan(VNI, &ping(FAR, NEIGHBOUR))),
        ("an echo request to the host", ping(CLIENT, NODE)),
    ] {
        let ran = rig.run("from_underlay6", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (PASS, &[][..]), "{what}");
    }
}

#[test]
fn tunnel_packets_at_another_interface_are_refused_behind_extension_headers_as_well() {
    let mut rig = rig();
    let tunnel = vxlan6(VNI, &ping(FAR, NEIGHBOUR));
    let behind = |next: u8, header: [u8; 8]| {
        let mut packet = tunnel.clone();
        packet[20] = next;
        packet.splice(54..54, header);
        packet
    };
    for packet in [
        tunnel.clone(),
        behind(60, [17, 0, 1, 4, 0, 0, 0, 0]),
        // A first fragment, with more to come.
        behind(44, [17, 0, 0, 1, 0, 0, 0, 7]),
    ] {
        let ran = rig.run("from_outside", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NotPeer][..]));
    }
    let later = behind(44, [17, 0, 0, 9, 0, 0, 0, 7]);
    assert_eq!(rig.run("from_outside", &later).verdict, PASS, "nothing without its first");
}

#[test]
fn a_published_port_is_answered_from_a_backend_on_another_node() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, FAR, false)]);
    rig.publish(17, 8080, 7, 53);
    let asked = udp_from_client((CLIENT, 40_000), (NODE, 8080), b"?");
    let ran = rig.run("xdp_underlay", &asked);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]));
    let ran = rig.run("from_underlay6", &asked);
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowCreated]);
    let (vni, to, _, inner) = untunnel6(&ran.packet);
    assert_eq!((vni, to), (VNI, PEER6));
    let seen = see(&inner);
    assert_eq!((seen.from, seen.to), ((CLIENT, 40_000), (FAR, 53)));
    assert_eq!(seen.macs.1, mac(FAR).bytes());
    let reply = udp((FAR, 53), (CLIENT, 40_000), b"!");
    let ran = rig.run("from_underlay6", &vxlan6(VNI, &reply));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentToClient][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((NODE, 8080), (CLIENT, 40_000)));
}
