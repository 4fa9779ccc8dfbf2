//! `xdp_underlay` on IPv6: published ports whose backend is elsewhere, their replies, and what it leaves to TC.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Reason,
    maps::{ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED},
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    NODE_MAC, NODE6, OTHER_VNI, PEER, PEER_MAC, PEER6, Rig, VNI, XDP_DROP, XDP_PASS, XDP_REDIRECT,
    ip6, mac,
    packets::{untunnel, vxlan, vxlan_from},
    packets6::*,
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// A client outside whose MAC is known, and one whose is not.
const CLIENT6: Ipv6Addr = PEER6;
const SILENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x12);
/// A third node of the cluster, and no node of it.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 66);
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// Port 8080 of the node leads to port 80 of `backend`.
fn rig(backend: Ipv4Addr) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, NEAR, SERVES, false);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, VIP, &[(1, backend, backend != FAR)]);
    for proto in [PROTO_TCP, PROTO_UDP] {
        rig.publish6(proto, 8080, SERVICE, 80);
    }
    rig.node(OTHER, &[VNI]);
    rig.dual_stack(VNI, 1);
    rig
}

fn six(ip: Ipv4Addr) -> Ipv6Addr {
    ip6(1, ip.octets()[3])
}

/// What a client outside sends to the node.
fn from_client(client: Ipv6Addr, frame: impl Fn(Way) -> Vec<u8>) -> Vec<u8> {
    let way = Way { from: (PEER, client), to: (PEER, NODE6) };
    between(frame(way), PEER_MAC, NODE_MAC)
}

/// What the backend elsewhere sends to a client outside.
fn to_client(client: Ipv6Addr) -> Way {
    Way { from: (FAR, six(FAR)), to: (GATEWAY, client) }
}

fn ports(seen: &Seen6) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([seen.message[at], seen.message[at + 1]]);
    (port(0), port(2))
}

/// It is as it came; the reasons are those that are counted.
fn assert_passed(rig: &mut Rig, what: &str, packet: &[u8], counted: &[Reason]) {
    let ran = rig.run("xdp_underlay", packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, counted), "{what}");
    assert_eq!(ran.packet, packet, "{what}");
}

fn assert_dropped(rig: &mut Rig, what: &str, packet: &[u8], reason: Reason) {
    let ran = rig.run("xdp_underlay", packet);
    assert_eq!(ran.verdict, XDP_DROP, "{what}");
    assert!(ran.counted.contains(&reason), "{what}: {:?}", ran.counted);
}

#[test]
fn a_clients_packet_goes_to_the_backend_as_by_tc() {
    let mut rig = rig(FAR);
    let mut without_sum = from_client(CLIENT6, |way| udp6(way, (40_003, 8080), b"odd"));
    without_sum[60..62].fill(0);
    for (what, packet) in [
        ("an opening", from_client(CLIENT6, |way| segment6(way, (40_000, 8080), SYN))),
        ("what comes after it", from_client(CLIENT6, |way| segment6(way, (40_000, 8080), ACK))),
        ("a datagram", from_client(CLIENT6, |way| udp6(way, (40_001, 8080), b"odd"))),
        ("one that fills the tunnel", {
            from_client(CLIENT6, |way| udp6(way, (40_002, 8080), &[7; 1402]))
        }),
        ("one without a checksum", without_sum),
        ("a marked one", {
            let mut packet = from_client(CLIENT6, |way| udp6(way, (40_004, 8080), b"odd"));
            packet[15] |= 0x20;
            packet
        }),
    ] {
        let ran = rig.run("xdp_underlay", &packet);
        // BPF_PROG_TEST_RUN's interface is not the underlay, so XDP redirects; on the NIC it is XDP_TX.
        assert_eq!(ran.verdict, XDP_REDIRECT, "{what}: {:?}", ran.counted);
        assert_eq!(ran.counted[0], Reason::XdpEncapsulated, "{what}");
        assert_eq!(ran.moved[&Reason::XdpEncapsulated].bytes, packet.len() as u64, "{what}");
        let (vni, node, inner) = untunnel(&ran.packet);
        let by_tc = rig.run("from_underlay", &packet);
        assert_eq!(by_tc.counted, [Reason::Encapsulated], "{what}: one conntrack table for both");
        assert_eq!((vni, node, &inner), (VNI, PEER, &untunnel(&by_tc.packet).2), "{what}");
        // But for the outer source port, which is a hash's.
        let head = 34;
        assert_eq!(ran.packet[..head], by_tc.packet[..head], "{what}");
        if what != "one without a checksum" {
            let seen = see6(&inner);
            assert_eq!((seen.from, seen.to, ports(&seen).1), (CLIENT6, six(FAR), 80), "{what}");
            assert_eq!(seen.macs, (mac(GATEWAY).bytes(), mac(FAR).bytes()), "{what}");
        }
    }
}

#[test]
fn replies_leave_for_the_client_as_by_tc() {
    let mut rig = rig(FAR);
    rig.run("xdp_underlay", &from_client(CLIENT6, |way| segment6(way, (40_000, 8080), SYN)));
    rig.run("xdp_underlay", &from_client(CLIENT6, |way| udp6(way, (40_000, 8080), b"odd")));
    for reply in [
        segment6(to_client(CLIENT6), (80, 40_000), SYN_ACK),
        udp6(to_client(CLIENT6), (80, 40_000), b"even"),
    ] {
        let packet = vxlan(VNI, &reply);
        let ran = rig.run("xdp_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (XDP_REDIRECT, &[Reason::XdpSentToClient][..]));
        let seen = see6(&ran.packet);
        assert_eq!((seen.from, seen.to, ports(&seen)), (NODE6, CLIENT6, (8080, 40_000)));
        assert_eq!(seen.macs, (NODE_MAC, PEER_MAC));
        let by_tc = rig.run("from_underlay", &packet);
        assert_eq!((&by_tc.counted[..], by_tc.packet), (&[Reason::SentToClient][..], ran.packet));
    }
}

#[test]
fn a_network_that_is_not_here_has_backends_all_the_same() {
    let mut rig = rig(FAR);
    rig.set(|state| {
        state.networks.clear();
        state.links.clear();
        state.links6.clear();
    });
    let ran = rig.run("xdp_underlay", &from_client(CLIENT6, |way| udp6(way, (1, 8080), b"odd")));
    assert_eq!(ran.counted[0], Reason::XdpEncapsulated);
    let ran = rig.run("xdp_underlay", &vxlan(VNI, &udp6(to_client(CLIENT6), (80, 1), b"even")));
    assert_eq!(ran.counted, [Reason::XdpSentToClient]);
}

#[test]
fn the_clients_of_flows_in_use_are_kept() {
    let mut rig = rig(FAR);
    let ask = from_client(CLIENT6, |way| udp6(way, (40_000, 8080), b"odd"));
    rig.run("xdp_underlay", &ask);
    assert_eq!((rig.outsiders("addr6_ids_new").len(), rig.outsiders("addr6_ids").len()), (2, 0));
    rig.run("xdp_underlay", &vxlan(VNI, &udp6(to_client(CLIENT6), (80, 40_000), b"even")));
    // The first to speak again moves the flow, the next one finds it moved.
    rig.run("xdp_underlay", &ask);
    rig.run("xdp_underlay", &ask);
    assert_eq!((rig.outsiders("addr6_ids_new").len(), rig.outsiders("addr6_ids").len()), (0, 2));
}

#[test]
fn what_is_not_plain_is_left_to_tc() {
    let mut rig = rig(FAR);
    let datagram = |way| udp6(way, (40_000, 8080), b"odd");
    let fragment =
        |way: Way| raw6(way, 44, 64, &[PROTO_UDP, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6]);
    let options = |way: Way| {
        let header = [PROTO_UDP, 0, 1, 4, 0, 0, 0, 0];
        raw6(way, 60, 64, &[&header[..], &udp6(way, (40_000, 8080), b"odd")[54..]].concat())
    };
    let impossible = |way: Way| segment6(way, (40_000, 8080), 0x03);
    let mut too_long = from_client(CLIENT6, datagram);
    too_long[18..20].fill(0xff);
    let mut too_short = from_client(CLIENT6, datagram);
    too_short[18..20].copy_from_slice(&[0, 7]);
    let mut version = from_client(CLIENT6, datagram);
    version[14] = 0x40;
    let whole = from_client(CLIENT6, |way| segment6(way, (40_000, 8080), SYN));
    for (what, packet) in [
        ("a fragment", from_client(CLIENT6, fragment)),
        ("extension headers", from_client(CLIENT6, options)),
        ("SCTP", from_client(CLIENT6, |way| raw6(way, 132, 64, &[0x9c, 0x40, 0x1f, 0x90, 0, 0]))),
        ("a ping", from_client(CLIENT6, ping6)),
        ("flags that exclude each other", from_client(CLIENT6, impossible)),
        ("a length beyond the frame", too_long),
        ("a length within the header", too_short),
        ("another version", version),
        ("a header that ends early", whole[..58].to_vec()),
        ("another port", from_client(CLIENT6, |way| udp6(way, (40_000, 8081), b"odd"))),
        ("another address", {
            let way = Way { from: (PEER, CLIENT6), to: (PEER, ip6(5, 5)) };
            between(datagram(way), PEER_MAC, NODE_MAC)
        }),
        ("what does not fit the tunnel", {
            from_client(CLIENT6, |way| udp6(way, (40_000, 8080), &[7; 1403]))
        }),
    ] {
        assert_passed(&mut rig, what, &packet, &[]);
    }
    assert!(rig.outsiders("addr6_ids_new").is_empty(), "nobody was noted");
    // A service whose backends have no IPv6 leaves the port to the host.
    rig.publish(PROTO_UDP, 8080, SERVICE, 80);
    assert_passed(&mut rig, "no IPv6", &from_client(CLIENT6, datagram), &[]);
}

#[test]
fn a_backend_here_and_none_at_all_are_left_to_tc() {
    let mut near = rig(NEAR);
    let packet = from_client(CLIENT6, |way| udp6(way, (40_000, 8080), b"odd"));
    assert_passed(&mut near, "a backend here", &packet, &[Reason::FlowCreated]);
    assert_eq!(near.run("from_underlay", &packet).counted, [Reason::DeliveredLocal]);
    let mut empty = rig(NEAR);
    empty.service(SERVICE, VNI, VIP, &[]);
    assert_passed(&mut empty, "no backend", &packet, &[]);
    assert_eq!(empty.run("from_underlay", &packet).counted, [Reason::NoBackendAnswered]);
}

#[test]
fn who_is_inside_does_not_come_from_outside() {
    let mut rig = rig(FAR);
    let packet = from_client(six(NEAR), |way| udp6(way, (40_000, 8080), b"odd"));
    assert_dropped(&mut rig, "an endpoint", &packet, Reason::SpoofedInnerSource);
}

#[test]
fn replies_come_from_the_backends_node_and_are_of_a_flow() {
    let mut rig = rig(FAR);
    let reply = udp6(to_client(CLIENT6), (80, 40_000), b"even");
    assert_passed(&mut rig, "nobody has asked", &vxlan(VNI, &reply), &[]);
    rig.run("xdp_underlay", &from_client(CLIENT6, |way| udp6(way, (40_000, 8080), b"odd")));
    let from = |node| vxlan_from(node, VNI, &reply);
    assert_dropped(&mut rig, "another node", &from(OTHER), Reason::SpoofedInnerSource);
    assert_dropped(&mut rig, "a stranger", &from(STRANGER), Reason::NotPeer);
    assert_passed(&mut rig, "another network", &vxlan(OTHER_VNI, &reply), &[]);
    let to_near = Way { from: (FAR, six(FAR)), to: (NEAR, six(NEAR)) };
    let to_near = vxlan(VNI, &udp6(to_near, (80, 40_000), b"even"));
    assert_passed(&mut rig, "to an endpoint", &to_near, &[]);
    let ran = rig.run("xdp_underlay", &from(PEER));
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_REDIRECT, &[Reason::XdpSentToClient][..]));
}

#[test]
fn a_reply_that_the_client_is_to_be_found_for_is_left_to_tc() {
    let mut rig = rig(FAR);
    let ask = from_client(SILENT6, |way| udp6(way, (40_000, 8080), b"odd"));
    assert_eq!(rig.run("xdp_underlay", &ask).counted[0], Reason::XdpEncapsulated);
    let reply = |length| vxlan(VNI, &udp6(to_client(SILENT6), (80, 40_000), &vec![7; length]));
    assert_passed(&mut rig, "its MAC is not known", &reply(4), &[]);
    assert_eq!(rig.run("from_underlay", &reply(4)).counted, [Reason::SentToClient]);
}
