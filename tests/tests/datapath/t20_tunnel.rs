//! `from_underlay` on tunnel packets: who may send us what.

use std::net::Ipv4Addr;

use overlay_common::{BRIDGE_VNI, Reason};
use overlay_tests::rig::{
    DROP, NODE, OTHER_VNI, PASS, PEER, REDIRECT, Rig, VNI, XDP_PASS, mac, packets::*,
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, HERE, 0, false);
    rig.remote(VNI, FAR, 0);
    rig
}

#[test]
fn a_frame_from_an_endpoint_of_a_peer_is_delivered_as_it_was_sent() {
    let mut rig = rig();
    for frame in [
        ping(FAR, HERE),
        tcp((FAR, 40_000), (HERE, 80), Tcp::Data),
        udp((FAR, 40_000), (HERE, 53), b""),
    ] {
        let ran = rig.run("from_underlay", &vxlan(VNI, &frame));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        assert_eq!(ran.packet, frame);
    }
}

#[test]
fn reserved_bits_are_ignored() {
    let mut rig = rig();
    let frame = ping(FAR, HERE);
    let mut packet = vxlan(VNI, &frame);
    packet[42] = 0xff;
    packet[43..46].copy_from_slice(&[1, 2, 3]);
    packet[49] = 0xff;
    let ran = rig.run("from_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(ran.packet, frame);
}

#[test]
fn hostile_tunnel_packets_are_dropped_by_name() {
    let mut rig = rig();
    let frame = ping(FAR, HERE);
    let stranger = Ipv4Addr::new(172, 16, 1, 66);
    let other = Ipv4Addr::new(172, 16, 1, 12);
    rig.node(other, &[]);
    let no_vni = {
        let mut packet = vxlan(VNI, &frame);
        packet[42] = 0;
        packet
    };
    let arp = arp_request(FAR, HERE);
    for (what, packet, reason) in [
        ("no node", vxlan_from(stranger, VNI, &frame), Reason::NotPeer),
        ("no node, and no inner frame", vxlan_from(stranger, VNI, &[]), Reason::NotPeer),
        (
            "no node, and a spoofed source",
            vxlan_from(stranger, VNI, &ping(NOBODY, HERE)),
            Reason::NotPeer,
        ),
        ("this node itself", vxlan_from(NODE, VNI, &frame), Reason::NotPeer),
        ("no I flag", no_vni, Reason::InvalidVni),
        ("the bridge's VNI", vxlan(BRIDGE_VNI, &frame), Reason::InvalidVni),
        ("VNI 0", vxlan(0, &frame), Reason::InvalidVni),
        ("the VNI of a network that is not here", vxlan(OTHER_VNI, &frame), Reason::UnknownVni),
        ("no node of the network", vxlan_from(other, VNI, &ping(FAR, NOBODY)), Reason::NotPeer),
        ("ARP from no node of the network", vxlan_from(other, VNI, &arp), Reason::NotPeer),
        ("nobody's address", vxlan(VNI, &ping(FAR, NOBODY)), Reason::NoEndpoint),
        ("a source nobody has", vxlan(VNI, &ping(NOBODY, HERE)), Reason::SpoofedInnerSource),
        ("our own endpoint's source", vxlan(VNI, &ping(HERE, HERE)), Reason::SpoofedInnerSource),
        (
            "the gateway's source",
            vxlan(VNI, &ping(Ipv4Addr::new(10, 0, 1, 1), HERE)),
            Reason::SpoofedInnerSource,
        ),
        (
            "an outside source to what publishes nothing",
            vxlan(VNI, &ping(Ipv4Addr::new(192, 0, 2, 9), HERE)),
            Reason::NotPublished,
        ),
        ("ARP in the tunnel", vxlan(VNI, &arp), Reason::UnsupportedProtocol),
        ("no inner frame", vxlan(VNI, &[]), Reason::Truncated),
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}");
    }
}

#[test]
fn a_node_may_not_speak_for_another_nodes_endpoint() {
    let mut rig = rig();
    let other = Ipv4Addr::new(172, 16, 1, 12);
    let packet = vxlan_from(other, VNI, &ping(FAR, HERE));
    // Of the cluster, and then of the network as well.
    for (networks, reason) in [(&[][..], Reason::NotPeer), (&[VNI], Reason::SpoofedInnerSource)] {
        rig.node(other, networks);
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]));
    }
}

#[test]
fn a_vni_without_a_network_here_is_unknown_whatever_is_in_the_packet() {
    let mut rig = rig();
    // The peer has endpoints of it.
    rig.node(PEER, &[OTHER_VNI]);
    let mut fragment = udp((FAR, 40_000), (HERE, 53), b"");
    fragment[20] = 0x20;
    let mut group = udp((FAR, 40_000), (Ipv4Addr::new(224, 0, 0, 251), 5353), b"");
    group[..6].copy_from_slice(&[0x01, 0x00, 0x5e, 0, 0, 251]);
    for (what, frame) in [
        ("a datagram", udp((FAR, 40_000), (HERE, 53), b"")),
        ("a fragment", fragment),
        ("to a group", group),
        ("ARP", arp_request(FAR, HERE)),
        ("nothing", vec![]),
    ] {
        let ran = rig.run("from_underlay", &vxlan(OTHER_VNI, &frame));
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnknownVni][..]), "{what}");
    }
}

#[test]
fn what_is_not_ours_is_the_hosts() {
    let mut rig = rig();
    let client = Ipv4Addr::new(172, 16, 1, 100);
    let not_our_address = {
        let mut packet = vxlan(VNI, &ping(FAR, HERE));
        packet[33] = 99;
        packet
    };
    for packet in [
        tcp_from_client((client, 40_000), (NODE, 22), Tcp::Syn),
        udp_from_client((client, 40_000), (NODE, 53), b"question"),
        not_our_address,
        arp_request(client, NODE),
        vec![0; 14],
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (PASS, &[][..]));
        assert_eq!(ran.packet, packet);
        let ran = rig.run("xdp_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]));
    }
}

#[test]
fn macs_of_a_delivered_frame_are_those_of_its_addresses() {
    let mut rig = rig();
    let mut frame = ping(FAR, HERE);
    frame[..12].copy_from_slice(&[0xff; 12]);
    let ran = rig.run("from_underlay", &vxlan(VNI, &frame));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see(&ran.packet).macs, (mac(FAR).bytes(), mac(HERE).bytes()));
}
