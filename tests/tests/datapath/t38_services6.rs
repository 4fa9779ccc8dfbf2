//! IPv6 to VIPs and through published ports: translation there and back on every node of the way.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Reason,
    maps::{
        ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, LB_SOURCE_HASH, SERVICE_RESETS,
        VNI_FLAG_IPV6,
    },
    wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    DROP, NODE_MAC, NODE6, OTHER_VNI, PASS, PEER, PEER_MAC, PEER6, REDIRECT, Ran, Rig, VNI, ip6,
    mac,
    packets::{untunnel, untunnel_any, vxlan},
    packets6::*,
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// A client outside with a known MAC.
const CLIENT6: Ipv6Addr = PEER6;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
/// A third node of the cluster.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);

/// `sender` sends; the service has `backend`, and port 8080 of the node leads to its port 80.
fn rig(sender: Ipv4Addr, backend: Ipv4Addr) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, sender == ME);
    rig.local(VNI, NEAR, SERVES, sender == NEAR);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, VIP, &[(1, backend, backend != FAR)]);
    for proto in [PROTO_TCP, PROTO_UDP] {
        rig.publish6(proto, 8080, SERVICE, 80);
    }
    rig.node(OTHER, &[VNI]);
    rig.dual_stack(VNI, 1);
    rig
}

fn both(ip: Ipv4Addr) -> (Ipv4Addr, Ipv6Addr) {
    (ip, ip6(1, ip.octets()[3]))
}

fn six(ip: Ipv4Addr) -> Ipv6Addr {
    both(ip).1
}

fn way(from: Ipv4Addr, to: Ipv4Addr) -> Way {
    Way { from: both(from), to: both(to) }
}

/// From a client outside to an endpoint, as in the tunnel.
fn inward(to: Ipv4Addr) -> Way {
    Way { from: (GATEWAY, CLIENT6), to: both(to) }
}

/// From an endpoint to a client outside.
fn outward(from: Ipv4Addr) -> Way {
    Way { from: both(from), to: (GATEWAY, CLIENT6) }
}

/// A packet from the client outside to the node.
fn from_client(client: Ipv6Addr, frame: impl Fn(Way) -> Vec<u8>) -> Vec<u8> {
    let way = Way { from: (PEER, client), to: (PEER, NODE6) };
    between(frame(way), PEER_MAC, NODE_MAC)
}

fn ports(seen: &Seen6) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([seen.message[at], seen.message[at + 1]]);
    (port(0), port(2))
}

fn went(ran: &Ran, reasons: &[Reason]) -> Seen6 {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, reasons));
    see6(&ran.packet)
}

fn tunnelled(ran: &Ran, reasons: &[Reason]) -> (Seen6, Ipv4Addr) {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, reasons));
    let (vni, node, inner) = untunnel_any(&ran.packet);
    assert_eq!(vni, VNI);
    (see6(&inner), node)
}

#[test]
fn both_families_of_one_client_and_port_are_two_flows() {
    let mut rig = rig(ME, FAR);
    rig.run("from_container", &segment6(way(ME, VIP), (40_000, 80), SYN));
    let ipv4 = overlay_tests::rig::packets::tcp(
        (ME, 40_000),
        (VIP, 80),
        overlay_tests::rig::packets::Tcp::Syn,
    );
    let ran = rig.run("from_container", &ipv4);
    assert!(ran.counted.contains(&Reason::FlowCreated));
    let sides: Vec<_> =
        rig.conntrack().iter().map(|(key, _)| key.vni & VNI_FLAG_IPV6 != 0).collect();
    assert_eq!(sides.iter().filter(|is_ipv6| **is_ipv6).count(), 2);
    assert_eq!(sides.len(), 4);
}

#[test]
fn a_vip_is_found_and_answers_ping() {
    let mut rig = rig(ME, NEAR);
    let ran = rig.run("from_container", &solicit(both(ME), six(VIP)));
    let seen = went(&ran, &[Reason::NdAnswered]);
    assert_eq!((seen.from, seen.macs.0), (six(VIP), mac(VIP).bytes()));
    let ran = rig.run("from_container", &ping6(way(ME, VIP)));
    let seen = went(&ran, &[Reason::EchoAnswered]);
    assert_eq!((seen.from, seen.to, seen.message[0]), (six(VIP), six(ME), 129));
}

#[test]
fn a_service_without_a_backend_refuses_at_once() {
    let mut rig = rig(ME, NEAR);
    rig.service(SERVICE, VNI, VIP, &[]);
    let answered = [Reason::NoBackendAnswered];
    let ran = rig.run("from_container", &segment6(way(ME, VIP), (40_000, 80), SYN));
    let seen = went(&ran, &answered);
    assert_eq!((seen.from, seen.to, ports(&seen)), (six(VIP), six(ME), (80, 40_000)));
    assert_eq!(seen.message[13], 0x14, "RST and ACK");
    assert_eq!(seen.message[8..12], 1001_u32.to_be_bytes());
    for length in [0, 3, 500] {
        let datagram = udp6(way(ME, VIP), (40_000, 53), &vec![7; length]);
        let ran = rig.run("from_container", &datagram);
        let seen = went(&ran, &answered);
        assert_eq!((seen.from, seen.to, &seen.message[..2]), (six(VIP), six(ME), &[1, 4][..]));
        let quoted = &seen.message[8..];
        assert_eq!(quoted, &datagram[14..14 + quoted.len()]);
        assert_eq!(quoted.len(), if length == 500 { 128 } else { 48 });
    }
    // SCTP ignores unreachable ports.
    let init = [&40_000_u16.to_be_bytes()[..], &80_u16.to_be_bytes(), &[0; 8], &[1, 0, 0, 4]];
    let ran = rig.run("from_container", &raw6(way(ME, VIP), PROTO_SCTP, 64, &init.concat()));
    let seen = went(&ran, &answered);
    assert_eq!((&seen.message[..2], seen.message[7]), (&[4, 1][..], 6));
    // Packets with extension headers get no answer.
    let syn = segment6(way(ME, VIP), (40_000, 80), SYN);
    let hidden = [&[PROTO_TCP, 0, 1, 4, 0, 0, 0, 0][..], &syn[54..]].concat();
    let ran = rig.run("from_container", &raw6(way(ME, VIP), 60, 64, &hidden));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoBackend][..]));
}

#[test]
fn a_client_is_told_when_its_backend_has_gone() {
    let mut rig = rig(ME, FAR);
    rig.set(|state| {
        state.services.get_mut(&SERVICE).expect("a service").flags = SERVICE_RESETS;
    });
    rig.run("from_container", &segment6(way(ME, VIP), (40_000, 80), SYN));
    rig.set(|state| state.backends.clear());
    let ran = rig.run("from_container", &segment6(way(ME, VIP), (40_000, 80), ACK));
    let seen = went(&ran, &[Reason::BackendGoneAnswered]);
    assert_eq!((seen.from, seen.message[13]), (six(VIP), 0x04));
}

#[test]
fn what_no_service_carries_is_dropped_by_name() {
    let mut rig = rig(ME, NEAR);
    let link_local = overlay_tests::rig::link_local(ME);
    let from_link = way(ME, VIP).with(link_local, six(VIP));
    for (what, packet, reason) in [
        ("a link-local client", segment6(from_link, (40_000, 80), SYN), Reason::ServiceProtocol),
        ("ESP", raw6(way(ME, VIP), 50, 64, &[0; 40]), Reason::ServiceProtocol),
        ("an error of no flow", raw6(way(ME, VIP), 58, 64, &[1; 60]), Reason::UnrelatedError),
        ("SYN and FIN", segment6(way(ME, VIP), (40_000, 80), 0x03), Reason::Malformed),
        ("extension headers that never end", extended(way(ME, VIP), 3), Reason::Malformed),
        ("half a header", raw6(way(ME, VIP), 6, 64, &[0; 12]), Reason::Truncated),
        ("a later fragment", fragment(way(ME, VIP), 9, 185, b"rest"), Reason::Fragment),
    ] {
        let ran = rig.run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}");
    }
}

/// A datagram behind so many extension headers of 256 bytes.
fn extended(way: Way, headers: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for n in 1..=headers {
        let mut header = [0; 256];
        header[0] = if n == headers { PROTO_UDP } else { 60 };
        header[1] = 31;
        payload.extend(header);
    }
    payload.extend(&udp6(way, (40_000, 53), b"?")[54..]);
    raw6(way, 60, 64, &payload)
}

#[test]
fn ports_behind_extension_headers_are_found_and_translated() {
    let mut rig = rig(NEAR, NEAR);
    let through = Way { from: (PEER, CLIENT6), to: (PEER, NODE6) };
    for headers in [1, 2] {
        let mut packet = extended(through, headers);
        let at = packet.len() - 9;
        // Sent to the published port, with a right checksum.
        packet.splice(at.., udp6(through, (40_000, 8080), b"?")[54..].to_vec());
        let ran = rig.run("from_underlay", &between(packet, PEER_MAC, NODE_MAC));
        assert_eq!(ran.verdict, REDIRECT, "{:?}", ran.counted);
        // Without them it is a datagram to the backend, checksum included.
        let bare = raw6(inward(NEAR), PROTO_UDP, 64, &ran.packet[at..]);
        let seen = see6(&bare);
        assert_eq!((seen.to, ports(&seen)), (six(NEAR), (40_000, 80)), "{headers}");
    }
}

/// A fragment of a UDP datagram; `field` has its offset and the flag of more (RFC 8200, section
/// 4.5).
fn fragment(way: Way, id: u32, field: u16, part: &[u8]) -> Vec<u8> {
    let [high, low] = field.to_be_bytes();
    let header = [&[PROTO_UDP, 0, high, low][..], &id.to_be_bytes()].concat();
    raw6(way, 44, 64, &[&header[..], part].concat())
}

#[test]
fn later_fragments_go_the_way_of_their_first_one() {
    let mut rig = rig(ME, FAR);
    let datagram = udp6(way(ME, VIP), (40_000, 53), &[9; 1000]);
    let (first, rest) = datagram[54..].split_at(504);
    let ran = rig.run("from_container", &fragment(way(ME, VIP), 77, 1, first));
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowCreated]);
    let head = untunnel(&ran.packet).2;
    let ran = rig.run("from_container", &fragment(way(ME, VIP), 77, 504, rest));
    assert_eq!(ran.counted, [Reason::Encapsulated]);
    let tail = untunnel(&ran.packet).2;
    // Put together, it is a datagram to the backend with a right checksum.
    let whole = [&head[62..], &tail[62..]].concat();
    let seen = see6(&raw6(way(ME, FAR), PROTO_UDP, 64, &whole));
    assert_eq!((seen.to, ports(&seen)), (six(FAR), (40_000, 53)));
    assert_eq!(tail[38..54], six(FAR).octets());
}

#[test]
fn who_is_inside_does_not_come_from_outside() {
    let mut rig = rig(ME, NEAR);
    let syn = |way| segment6(way, (40_000, 8080), SYN);
    for (what, packet) in [
        ("an endpoint", from_client(six(ME), syn)),
        ("an address of the subnet", from_client(ip6(1, 99), syn)),
        (
            "through a node",
            vxlan(VNI, &segment6(way(ME, NEAR).with(ip6(1, 99), six(NEAR)), (1, 80), SYN)),
        ),
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!(ran.verdict, DROP, "{what}");
        assert!(ran.counted.contains(&Reason::SpoofedInnerSource), "{what}: {:?}", ran.counted);
    }
    // Packets from outside to an endpoint that serves no published port are dropped.
    let ran = rig.run("from_underlay", &vxlan(VNI, &segment6(inward(ME), (40_000, 80), SYN)));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NotPublished][..]));
}

#[test]
fn only_published_ports_of_the_hosts_own_addresses_are_looked_at() {
    let mut rig = rig(NEAR, NEAR);
    let syn = |port| move |way| segment6(way, (40_000, port), SYN);
    let elsewhere = Way { from: (PEER, CLIENT6), to: (PEER, ip6(5, 5)) };
    let ping = from_client(CLIENT6, ping6);
    for (what, packet) in [
        ("another port", from_client(CLIENT6, syn(8081))),
        ("another address", between(segment6(elsewhere, (1, 8080), SYN), PEER_MAC, NODE_MAC)),
        ("a ping", ping),
        ("a later fragment", from_client(CLIENT6, |way| fragment(way, 9, 185, b"rest"))),
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.packet), (PASS, &packet), "{what}");
    }
    assert!(rig.outsiders("addr6_ids_new").is_empty(), "nobody was noted");
    // A service without IPv6 backends leaves the port to the host.
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    let packet = from_client(CLIENT6, syn(8080));
    assert_eq!(rig.run("from_underlay", &packet).verdict, PASS);
}

#[test]
fn errors_about_a_flow_reach_its_ends_as_they_know_it() {
    // A client outside reports a narrow path to a backend elsewhere, through the ingress node.
    let mut rig = rig(ME, FAR);
    let ask = |way| udp6(way, (40_000, 8080), b"odd");
    rig.run("from_underlay", &from_client(CLIENT6, ask));
    let quote = |way, ports| udp6(way, ports, &[5; 100])[14..].to_vec();
    let as_sent = Way { from: (PEER, NODE6), to: (PEER, CLIENT6) };
    let message = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &quote(as_sent, (8080, 40_000))].concat();
    let ran = rig.run("from_underlay", &from_client(CLIENT6, |way| icmpv6(way, 64, &message)));
    let (seen, node) = tunnelled(&ran, &[Reason::Encapsulated]);
    assert_eq!((seen.from, seen.to, node), (CLIENT6, six(FAR), PEER));
    assert_eq!(seen.message[8..], quote(outward(FAR), (80, 40_000))[..], "checksum included");

    // The client learns of a backend's closed port from the frontend's address.
    let message = [&[1, 4, 0, 0, 0, 0, 0, 0][..], &quote(inward(FAR), (40_000, 80))].concat();
    let ran = rig.run("from_underlay", &vxlan(VNI, &icmpv6(outward(FAR), 64, &message)));
    let seen = went(&ran, &[Reason::SentToClient]);
    assert_eq!((seen.from, seen.to), (NODE6, CLIENT6));
    let as_asked = Way { from: (PEER, CLIENT6), to: (PEER, NODE6) };
    assert_eq!(seen.message[8..], quote(as_asked, (40_000, 8080))[..]);
}

#[test]
fn what_does_not_fit_is_told_to_who_sent_it_and_of_what_it_sent() {
    let mut rig = rig(ME, FAR);
    let large = udp6(way(ME, VIP), (40_000, 53), &[7; 1403]);
    let ran = rig.run("from_container", &large);
    let seen = went(&ran, &[Reason::FlowCreated, Reason::TooBigAnswered]);
    assert_eq!((seen.from, seen.to, &seen.message[..2]), (six(GATEWAY), six(ME), &[2, 0][..]));
    assert_eq!(seen.message[4..8], 1450_u32.to_be_bytes());
    assert_eq!(seen.message[8..], large[14..14 + 1232]);

    let large = from_client(CLIENT6, |way| udp6(way, (40_000, 8080), &[7; 1403]));
    let ran = rig.run("from_underlay", &large);
    let seen = went(&ran, &[Reason::FlowCreated, Reason::TooBigAnswered]);
    assert_eq!((seen.from, seen.to, seen.macs), (NODE6, CLIENT6, (NODE_MAC, PEER_MAC)));
    assert_eq!(seen.message[8..], large[14..14 + 1232]);
}

#[test]
fn a_container_reaches_the_ports_that_its_own_host_publishes() {
    // On the service's network, and on another one, as a client outside.
    for other_network in [false, true] {
        let mut rig = rig(ME, FAR);
        if other_network {
            let client = Ipv4Addr::new(10, 0, 2, 2);
            rig.network(OTHER_VNI, 2);
            rig.local(OTHER_VNI, client, 0, true);
            rig.dual_stack(OTHER_VNI, 2);
        }
        let (vni, me) = if other_network { (OTHER_VNI, ip6(2, 2)) } else { (VNI, six(ME)) };
        let mac_of = if other_network { Ipv4Addr::new(10, 0, 2, 2) } else { ME };
        let ask = Way { from: (mac_of, me), to: (GATEWAY, NODE6) };
        let ran = rig.run("from_container", &segment6(ask, (40_000, 8080), SYN));
        let (seen, _) = tunnelled(&ran, &[Reason::Encapsulated, Reason::FlowCreated]);
        assert_eq!((seen.from, seen.to, ports(&seen)), (me, six(FAR), (40_000, 80)), "{vni}");
        let reply = Way { from: both(FAR), to: (mac_of, me) };
        let reply = segment6(reply, (80, 40_000), SYN_ACK);
        let seen = went(&rig.run("from_underlay", &vxlan(VNI, &reply)), &[Reason::Decapsulated]);
        assert_eq!((seen.from, seen.to, ports(&seen)), (NODE6, me, (8080, 40_000)));
        assert_eq!(seen.macs.1, mac(mac_of).bytes());
    }
}

#[test]
fn a_flood_of_addresses_outside_forgets_no_client_in_use() {
    let mut rig = rig(NEAR, NEAR);
    let segment = |flags| move |way: Way| segment6(way, (40_000, 8080), flags);
    rig.run("from_underlay", &from_client(CLIENT6, segment(SYN)));
    rig.run("from_container", &segment6(outward(NEAR), (80, 40_000), SYN_ACK));
    for _ in 0..2 {
        rig.run("from_underlay", &from_client(CLIENT6, segment(ACK)));
    }
    // Four times as many as the tables of new flows hold.
    for n in 0..4 * 4096_u32 {
        let stranger = Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(n));
        let syn = |way| segment6(way, (1024 + (n % 60_000) as u16, 8080), SYN);
        // Two packets, because the kernel then considers an entry to be in use.
        for _ in 0..2 {
            rig.run("from_underlay", &from_client(stranger, syn));
        }
    }
    // The backend sends first again: if the client were forgotten, its packet would make a new
    // entry.
    let ran = rig.run("from_container", &segment6(outward(NEAR), (80, 40_000), ACK));
    assert_eq!(went(&ran, &[Reason::SentToClient]).to, CLIENT6);
    let ran = rig.run("from_underlay", &from_client(CLIENT6, segment(ACK)));
    assert_eq!(went(&ran, &[Reason::DeliveredLocal]).to, six(NEAR));
}

#[test]
fn a_client_outside_is_hashed_by_its_address_and_not_by_its_number() {
    // Address ids differ from node to node; through every node a client must get the same backend.
    let picked = |seed: [u64; 2]| -> Vec<Ipv6Addr> {
        let mut rig = rig(NEAR, NEAR);
        rig.service(SERVICE, VNI, VIP, &[(1, NEAR, true), (2, ME, true)]);
        rig.balance(SERVICE, LB_SOURCE_HASH, None);
        rig.set_addr6_secret(seed);
        let ask = |way| udp6(way, (40_000, 8080), b"?");
        let clients = (1..=16).map(|n| Ipv6Addr::from(0x2001_0db8 << 96 | n));
        clients.map(|c| see6(&rig.run("from_underlay", &from_client(c, ask)).packet).to).collect()
    };
    let first = picked([1, 3]);
    assert_eq!(first, picked([0x5555, 0x7777]));
    assert!(first.contains(&six(NEAR)) && first.contains(&six(ME)), "{first:?}");
}
