//! `xdp_underlay` on tunnel packets: those that it delivers, those that it drops and those that it
//! leaves to TC.

use std::net::Ipv4Addr;

use overlay_common::{
    BRIDGE_VNI, Reason,
    maps::{
        CONNTRACK_REPLY, Config, Conntrack, ConntrackKey, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST,
    },
};
use overlay_tests::rig::{
    DROP, OTHER_VNI, Ran, Rig, VNI, XDP_DROP, XDP_PASS, XDP_REDIRECT, mac, packets::*,
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 66);
/// A node of the cluster.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);

fn rig_with(here: u8, far: u8) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, HERE, here, false);
    rig.remote(VNI, FAR, far);
    rig
}

fn rig() -> Rig {
    rig_with(0, 0)
}

fn run(rig: &mut Rig, packet: &[u8]) -> Ran {
    rig.run("xdp_underlay", packet)
}

fn datagram() -> Vec<u8> {
    udp((FAR, 40_000), (HERE, 53), b"question")
}

/// It is as it came, and nothing is counted.
fn assert_passed(rig: &mut Rig, what: &str, packet: &[u8]) {
    let ran = run(rig, packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]), "{what}");
    assert_eq!(ran.packet, packet, "{what}");
}

#[test]
fn a_datagram_from_an_endpoint_of_a_peer_is_delivered_as_tc_would() {
    let mut rig = rig();
    for (what, frame) in [
        ("UDP", datagram()),
        ("UDP that fills the tunnel", udp((FAR, 1), (HERE, 2), &[7; 1422])),
        ("ping", ping(FAR, HERE)),
    ] {
        let mut changed = frame.clone();
        changed[..12].copy_from_slice(&[0xff; 12]);
        let packet = vxlan(VNI, &changed);
        let ran = run(&mut rig, &packet);
        let expected = (XDP_REDIRECT, &[Reason::XdpDecapsulated][..]);
        assert_eq!((ran.verdict, &ran.counted[..]), expected, "{what}");
        assert_eq!(ran.moved[&Reason::XdpDecapsulated].bytes, packet.len() as u64, "{what}");
        assert_eq!(see(&ran.packet).macs, (mac(FAR).bytes(), mac(HERE).bytes()), "{what}");
        assert_eq!(ran.packet, rig.run("from_underlay", &packet).packet, "{what}");
    }
}

#[test]
fn what_tc_does_better_is_left_to_it() {
    let mut rig = rig();
    let fragment = {
        let mut frame = datagram();
        frame[20] = 0x20;
        frame
    };
    let options = {
        let mut frame = datagram();
        frame.splice(34..34, [1, 1, 1, 0]);
        frame[14] = 0x46;
        frame[17] += 4;
        frame
    };
    let outside = udp((Ipv4Addr::new(192, 0, 2, 9), 40_000), (HERE, 53), b"question");
    for (what, frame) in [
        ("TCP, which GRO has joined there", tcp((FAR, 40_000), (HERE, 80), Tcp::Data)),
        ("a fragment", fragment),
        ("options", options),
        ("a client outside", outside),
        ("more than the MTU", udp((FAR, 40_000), (HERE, 53), &[0; 1423])),
        ("ARP", arp_request(FAR, HERE)),
    ] {
        assert_passed(&mut rig, what, &vxlan(VNI, &frame));
    }
}

#[test]
fn nothing_is_decapsulated_where_checksums_may_be_undone() {
    let mut rig = rig();
    let config = Config { flags: 0, ..rig.config() };
    rig.set_config(&config);
    assert_passed(&mut rig, "a datagram", &vxlan(VNI, &datagram()));
}

#[test]
fn packets_to_the_host_itself_go_up_its_stack() {
    let mut rig = rig_with(ENDPOINT_FLAG_HOST, 0);
    assert_passed(&mut rig, "a datagram", &vxlan(VNI, &datagram()));
}

#[test]
fn a_backends_packets_are_delivered_unless_they_are_replies_to_translate() {
    let mut rig = rig_with(0, ENDPOINT_FLAG_BACKEND);
    let packet = vxlan(VNI, &datagram());
    let ran = run(&mut rig, &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_REDIRECT, &[Reason::XdpDecapsulated][..]));
    let key = ConntrackKey {
        saddr: FAR.into(),
        daddr: HERE.into(),
        sport: overlay_common::Be16::new(40_000),
        dport: overlay_common::Be16::new(53),
        vni: VNI,
        proto: 17,
        scope: [0; 3],
    };
    let entry =
        Conntrack { action: CONNTRACK_REPLY, last_seen: i64::MAX as u64, ..Conntrack::default() };
    rig.set_conntrack(key, Some(entry));
    assert_passed(&mut rig, "a reply", &packet);
}

#[test]
fn hostile_tunnel_packets_are_dropped_by_name_as_in_tc() {
    let mut rig = rig();
    rig.node(OTHER, &[]);
    let frame = datagram();
    for (what, packet, reason) in [
        ("no node", vxlan_from(STRANGER, VNI, &frame), Reason::NotPeer),
        ("no node, to be passed", vxlan_from(STRANGER, OTHER_VNI, &frame), Reason::NotPeer),
        ("no node and no inner frame", vxlan_from(STRANGER, VNI, &[]), Reason::NotPeer),
        ("a network that is not here", vxlan(OTHER_VNI, &frame), Reason::UnknownVni),
        ("no inner frame of such a network", vxlan(OTHER_VNI, &[]), Reason::UnknownVni),
        ("no node of the network", vxlan_from(OTHER, VNI, &frame), Reason::NotPeer),
        (
            "no node of the network, to nobody",
            vxlan_from(OTHER, VNI, &udp((FAR, 1), (NOBODY, 2), b"")),
            Reason::NotPeer,
        ),
        ("the bridge's VNI", vxlan(BRIDGE_VNI, &frame), Reason::InvalidVni),
        ("no inner frame", vxlan(VNI, &[]), Reason::Truncated),
        (
            "a source on this node",
            vxlan(VNI, &udp((HERE, 1), (HERE, 2), b"")),
            Reason::SpoofedInnerSource,
        ),
    ] {
        let ran = run(&mut rig, &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (XDP_DROP, &[reason][..]), "{what}");
        if !what.starts_with("no node, to be") {
            let ran = rig.run("from_underlay", &packet);
            assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what} in TC");
        }
    }
}

#[test]
fn a_node_may_not_speak_for_another_nodes_endpoint() {
    let mut rig = rig();
    rig.node(OTHER, &[VNI]);
    let ran = run(&mut rig, &vxlan_from(OTHER, VNI, &datagram()));
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_DROP, &[Reason::SpoofedInnerSource][..]));
    // A source address that no endpoint has may belong to a client, so TC decides.
    let unknown = vxlan(VNI, &udp((NOBODY, 1), (HERE, 2), b""));
    assert_passed(&mut rig, "a source nobody has", &unknown);
}
