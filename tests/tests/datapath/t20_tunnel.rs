//! `from_underlay` and `from_underlay6` on tunnel packets: the accepted senders. The families are
//! those of the underlay.

use std::net::Ipv4Addr;

use overlay_common::{BRIDGE_VNI, Reason};
use overlay_tests::{
    of_both_families,
    rig::{
        DROP, Family, NODE, OTHER_VNI, PASS, PEER, PEER_MAC, REDIRECT, Rig, VNI, XDP_PASS, mac,
        packets::*,
    },
};

of_both_families! {
    a_packet_to_another_node_is_encapsulated_with_the_inner_frame_intact,
    a_frame_from_an_endpoint_of_a_peer_is_delivered_as_it_was_sent,
    reserved_bits_are_ignored,
    hostile_tunnel_packets_are_dropped_by_name,
    a_node_may_not_speak_for_another_nodes_endpoint,
    a_vni_without_a_network_here_is_unknown_whatever_is_in_the_packet,
    macs_of_a_delivered_frame_are_those_of_its_addresses,
}

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

fn rig(family: Family) -> Rig {
    let mut rig = family.rig_on();
    rig.network(VNI, 1);
    rig.local(VNI, HERE, 0, true);
    rig.remote(VNI, FAR, 0);
    rig.dual_stack(VNI, 1);
    rig
}

/// Frames of both families, which a tunnel over either carries.
fn frames(from: Ipv4Addr, to: Ipv4Addr) -> Vec<Vec<u8>> {
    let of = |inner: Family| {
        [
            inner.ping(from, to),
            inner.tcp((from, 40_000), (to, 80), Tcp::Data),
            inner.udp((from, 40_000), (to, 53), b"question"),
            inner.udp((from, 40_000), (to, 53), b""),
        ]
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

fn a_packet_to_another_node_is_encapsulated_with_the_inner_frame_intact(family: Family) {
    let mut rig = rig(family);
    for frame in frames(HERE, FAR) {
        let ran = rig.run("from_container", &frame);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
        assert_eq!(ran.packet[..6], PEER_MAC);
        assert_eq!(family.untunnel(&ran.packet), (VNI, family.ip(PEER), frame));
    }
}

fn a_frame_from_an_endpoint_of_a_peer_is_delivered_as_it_was_sent(family: Family) {
    let mut rig = rig(family);
    for frame in frames(FAR, HERE) {
        let ran = rig.run(family.underlay_program(), &family.vxlan(VNI, &frame));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        assert_eq!(ran.packet, frame);
    }
}

fn reserved_bits_are_ignored(family: Family) {
    let mut rig = rig(family);
    let frame = ping(FAR, HERE);
    let mut packet = family.vxlan(VNI, &frame);
    let header = &mut packet[family.tunnel() - 8..family.tunnel()];
    header[0] = 0xff;
    header[1..4].copy_from_slice(&[1, 2, 3]);
    header[7] = 0xff;
    let ran = rig.run(family.underlay_program(), &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(ran.packet, frame);
}

fn hostile_tunnel_packets_are_dropped_by_name(family: Family) {
    Family::BOTH.into_iter().for_each(|inner| hostile_packets_are_dropped(family, inner));
}

fn hostile_packets_are_dropped(family: Family, inner: Family) {
    let mut rig = rig(family);
    let frame = inner.ping(FAR, HERE);
    let stranger = Ipv4Addr::new(172, 16, 1, 66);
    let other = Ipv4Addr::new(172, 16, 1, 12);
    family.node(&mut rig, other, &[]);
    let no_vni = {
        let mut packet = family.vxlan(VNI, &frame);
        packet[family.tunnel() - 8] = 0;
        packet
    };
    let arp = arp_request(FAR, HERE);
    for (what, packet, reason) in [
        ("no node", family.vxlan_from(stranger, VNI, &frame), Reason::NotPeer),
        ("no node, and no inner frame", family.vxlan_from(stranger, VNI, &[]), Reason::NotPeer),
        (
            "no node, and a spoofed source",
            family.vxlan_from(stranger, VNI, &inner.ping(NOBODY, HERE)),
            Reason::NotPeer,
        ),
        ("this node itself", family.vxlan_from(NODE, VNI, &frame), Reason::NotPeer),
        ("no I flag", no_vni, Reason::InvalidVni),
        ("the bridge's VNI", family.vxlan(BRIDGE_VNI, &frame), Reason::InvalidVni),
        ("VNI 0", family.vxlan(0, &frame), Reason::InvalidVni),
        (
            "the VNI of a network that is not here",
            family.vxlan(OTHER_VNI, &frame),
            Reason::UnknownVni,
        ),
        (
            "no node of the network",
            family.vxlan_from(other, VNI, &inner.ping(FAR, NOBODY)),
            Reason::NotPeer,
        ),
        ("ARP from no node of the network", family.vxlan_from(other, VNI, &arp), Reason::NotPeer),
        ("nobody's address", family.vxlan(VNI, &inner.ping(FAR, NOBODY)), Reason::NoEndpoint),
        (
            "a source nobody has",
            family.vxlan(VNI, &inner.ping(NOBODY, HERE)),
            Reason::SpoofedInnerSource,
        ),
        (
            "our own endpoint's source",
            family.vxlan(VNI, &inner.ping(HERE, HERE)),
            Reason::SpoofedInnerSource,
        ),
        (
            "the gateway's source",
            family.vxlan(VNI, &inner.ping(Ipv4Addr::new(10, 0, 1, 1), HERE)),
            Reason::SpoofedInnerSource,
        ),
        (
            "an outside source to what publishes nothing",
            family.vxlan(VNI, &inner.ping(Ipv4Addr::new(192, 0, 2, 9), HERE)),
            Reason::NotPublished,
        ),
        ("ARP in the tunnel", family.vxlan(VNI, &arp), Reason::UnsupportedProtocol),
        ("no inner frame", family.vxlan(VNI, &[]), Reason::Truncated),
    ] {
        let ran = rig.run(family.underlay_program(), &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}: {inner:?}");
    }
}

fn a_node_may_not_speak_for_another_nodes_endpoint(family: Family) {
    let mut rig = rig(family);
    let other = Ipv4Addr::new(172, 16, 1, 12);
    // First the sender is no node of the cluster, and then it is one without this network.
    for (networks, reason) in [(&[][..], Reason::NotPeer), (&[VNI], Reason::SpoofedInnerSource)] {
        family.node(&mut rig, other, networks);
        for inner in Family::BOTH {
            let packet = family.vxlan_from(other, VNI, &inner.ping(FAR, HERE));
            let ran = rig.run(family.underlay_program(), &packet);
            assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{inner:?}");
        }
    }
}

fn a_vni_without_a_network_here_is_unknown_whatever_is_in_the_packet(family: Family) {
    let mut rig = rig(family);
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
        let ran = rig.run(family.underlay_program(), &family.vxlan(OTHER_VNI, &frame));
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnknownVni][..]), "{what}");
    }
}

#[test]
fn what_is_not_ours_is_the_hosts() {
    let mut rig = rig(Family::Ipv4);
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

fn macs_of_a_delivered_frame_are_those_of_its_addresses(family: Family) {
    let mut rig = rig(family);
    let mut frame = ping(FAR, HERE);
    frame[..12].copy_from_slice(&[0xff; 12]);
    let ran = rig.run(family.underlay_program(), &family.vxlan(VNI, &frame));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see(&ran.packet).macs, (mac(FAR).bytes(), mac(HERE).bytes()));
}
