//! `xdp_underlay` on IPv6, as far as it differs from IPv4: marks and checksums, the address ids of
//! clients, and the packets that it leaves to TC.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Reason,
    maps::{ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED},
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    NODE_MAC, NODE6, OTHER_VNI, PEER, PEER_MAC, PEER6, Rig, VNI, XDP_DROP, XDP_PASS, XDP_REDIRECT,
    ip6,
    packets::{untunnel, vxlan, vxlan_from},
    packets6::*,
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// A client outside with a known MAC, and one with an unknown MAC.
const CLIENT6: Ipv6Addr = PEER6;
const SILENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x12);
/// A third node of the cluster, and no node of it.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 66);
const SYN: u8 = 0x02;

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

/// A packet from a client outside to the node.
fn from_client(client: Ipv6Addr, frame: impl Fn(Way) -> Vec<u8>) -> Vec<u8> {
    let way = Way { from: (PEER, client), to: (PEER, NODE6) };
    between(frame(way), PEER_MAC, NODE_MAC)
}

/// The path from the backend elsewhere to a client outside.
fn to_client(client: Ipv6Addr) -> Way {
    Way { from: (FAR, six(FAR)), to: (GATEWAY, client) }
}

/// The packet is unchanged, and the reasons are those that are counted.
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
fn a_datagram_without_a_checksum_and_a_marked_one_go_to_the_backend_as_by_tc() {
    let mut rig = rig(FAR);
    let mut without_sum = from_client(CLIENT6, |way| udp6(way, (40_003, 8080), b"odd"));
    without_sum[60..62].fill(0);
    let mut marked = from_client(CLIENT6, |way| udp6(way, (40_004, 8080), b"odd"));
    marked[15] |= 0x20;
    for (what, packet) in [("one without a checksum", without_sum), ("a marked one", marked)] {
        let ran = rig.run("xdp_underlay", &packet);
        assert_eq!(
            (ran.verdict, ran.counted[0]),
            (XDP_REDIRECT, Reason::XdpEncapsulated),
            "{what}"
        );
        let (vni, node, inner) = untunnel(&ran.packet);
        let by_tc = rig.run("from_underlay", &packet);
        assert_eq!((vni, node, inner), (VNI, PEER, untunnel(&by_tc.packet).2), "{what}");
        // The outer source port differs, because it is a hash.
        assert_eq!(ran.packet[..34], by_tc.packet[..34], "{what}");
    }
}

#[test]
fn the_clients_of_flows_in_use_are_kept() {
    let mut rig = rig(FAR);
    let ask = from_client(CLIENT6, |way| udp6(way, (40_000, 8080), b"odd"));
    rig.run("xdp_underlay", &ask);
    assert_eq!((rig.outsiders("addr6_ids_new").len(), rig.outsiders("addr6_ids").len()), (2, 0));
    rig.run("xdp_underlay", &vxlan(VNI, &udp6(to_client(CLIENT6), (80, 40_000), b"even")));
    // The first packet after the silence moves the flow, and the next one finds it moved.
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
    // A service without IPv6 backends leaves the port to the host.
    rig.publish(PROTO_UDP, 8080, SERVICE, 80);
    assert_passed(&mut rig, "no IPv6", &from_client(CLIENT6, datagram), &[]);
}

#[test]
fn an_endpoint_does_not_come_from_outside() {
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
