//! Replies of published ports that go straight from the backend's node to a client of IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be16, Be32, Frontend, Reason, hash,
    maps::{
        DSR, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, Frontend6Key, SERVICE_DSR,
        SERVICE_RESETS, Subnet6Key,
    },
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    FLOWS, NODE_MAC, NODE6, PEER, PEER_MAC, PEER6, REDIRECT, Ran, Rig, VNI, XDP_REDIRECT, ip6, mac,
    packets::{untunnel_any, vxlan, vxlan_from},
    packets6::*,
    underlay6::{untunnel6, vxlan6},
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const NO_VIP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// A client outside, whose MAC is known.
const CLIENT6: Ipv6Addr = PEER6;
/// Addresses of the node that was asked.
const ASKED6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99),
];
/// A third node of the cluster.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const FIN_ACK: u8 = 0x11;

/// Port 8080 of the nodes, in front of port 80 of one backend.
fn rig(backend: Ipv4Addr) -> Rig {
    on(Rig::new(), backend)
}

fn on(mut rig: Rig, backend: Ipv4Addr) -> Rig {
    rig.network(VNI, 1);
    rig.local(VNI, NEAR, SERVES, true);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, NO_VIP, &[(1, backend, backend == NEAR)]);
    flags(&mut rig, SERVICE_DSR | SERVICE_RESETS);
    for proto in [PROTO_TCP, PROTO_UDP] {
        rig.publish6(proto, 8080, SERVICE, 80);
    }
    rig.dual_stack(VNI, 1);
    let peer = rig.number(PEER);
    knows(&mut rig, peer, &ASKED6);
    rig
}

fn flags(rig: &mut Rig, flags: u16) {
    rig.set(|state| state.services.get_mut(&SERVICE).expect("a service").flags = flags);
}

/// Has a node be known to have these addresses.
fn knows(rig: &mut Rig, node: Be32, addresses: &[Ipv6Addr]) {
    rig.set(|state| {
        for address in addresses {
            let number = hash::of_node(&(*address).into());
            state.frontends6.insert(Frontend6Key { node, number }, (*address).into());
        }
    });
}

/// A frame as the node that was asked sends it, which says so.
fn said(address: Ipv6Addr, port: u16, frame: &[u8]) -> Vec<u8> {
    let address = hash::of_node(&address.into());
    let header = Frontend { address, port: Be16::new(port) }.header6();
    [&header.dst.bytes(), &header.src.bytes(), &frame[12..]].concat()
}

/// What an inner frame says of the address, by its number, and the port that were asked.
fn says(frame: &[u8]) -> Option<(Be32, u16)> {
    let mark = frame[6..10] == Frontend::MARK;
    let number: [u8; 4] = frame[2..6].try_into().expect("four bytes");
    mark.then(|| (Be32::from_octets(number), u16::from_be_bytes([frame[10], frame[11]])))
}

fn six(ip: Ipv4Addr) -> Ipv6Addr {
    ip6(1, ip.octets()[3])
}

/// From a client outside to an endpoint, as it is in the tunnel.
fn inward(client: Ipv6Addr) -> Way {
    Way { from: (GATEWAY, client), to: (NEAR, six(NEAR)) }
}

/// From the endpoint here to a client outside.
fn outward(client: Ipv6Addr) -> Way {
    Way { from: (NEAR, six(NEAR)), to: (GATEWAY, client) }
}

/// What the client outside sends to the node.
fn from_client(frame: impl Fn(Way) -> Vec<u8>) -> Vec<u8> {
    let way = Way { from: (PEER, CLIENT6), to: (PEER, NODE6) };
    between(frame(way), PEER_MAC, NODE_MAC)
}

fn ports(seen: &Seen6) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([seen.message[at], seen.message[at + 1]]);
    (port(0), port(2))
}

/// That a container's reply went straight to the client, from what it had asked. Checksums are verified.
fn straight(ran: &Ran, asked: (Ipv6Addr, u16), client: u16) -> Seen6 {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentDsr][..]));
    let seen = see6(&ran.packet);
    assert_eq!((seen.from, seen.to, ports(&seen)), (asked.0, CLIENT6, (asked.1, client)));
    assert_eq!(seen.macs, (NODE_MAC, PEER_MAC));
    seen
}

/// That it went to a node, as the backend sent it.
fn through(ran: &Ran, node: Ipv4Addr, client: (Ipv6Addr, u16)) {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let (vni, to_node, inner) = untunnel_any(&ran.packet);
    assert_eq!((vni, to_node), (VNI, node));
    let seen = see6(&inner);
    assert_eq!((seen.from, seen.to, ports(&seen)), (six(NEAR), client.0, (80, client.1)));
}

fn data(way: Way, ports: (u16, u16)) -> Vec<u8> {
    segment6(way, ports, ACK)
}

/// Opens a connection at the backend's node: the client's SYN, the backend's answer, the client's ACK.
fn connected(rig: &mut Rig, asked: (Ipv6Addr, u16), client: (Ipv6Addr, u16)) {
    let (address, port) = client;
    let syn = segment6(inward(address), (port, 80), SYN);
    let ran = rig.run("from_underlay", &vxlan(VNI, &said(asked.0, asked.1, &syn)));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    let seen = see6(&ran.packet);
    assert_eq!(seen.macs, (mac(GATEWAY).bytes(), mac(NEAR).bytes()));
    let ran = rig.run("from_container", &segment6(outward(address), (80, port), SYN_ACK));
    through(&ran, PEER, client);
    let ack = data(inward(address), (port, 80));
    rig.run("from_underlay", &vxlan(VNI, &said(asked.0, asked.1, &ack)));
}

#[test]
fn the_backends_node_is_told_what_was_asked_by_tc_and_by_xdp_alike() {
    told_by("from_underlay", REDIRECT);
    told_by("xdp_underlay", XDP_REDIRECT);
}

fn told_by(program: &str, sent: u32) {
    let mut rig = rig(FAR);
    let told = Some((hash::of_node(&NODE6.into()), 8080));
    let segment = |flags| from_client(|way| segment6(way, (40_000, 8080), flags));
    let datagram = from_client(|way| udp6(way, (40_001, 8080), b"odd"));
    for packet in [segment(SYN), segment(ACK), datagram] {
        let ran = rig.run(program, &packet);
        let (_, node, inner) = untunnel_any(&ran.packet);
        assert_eq!((ran.verdict, node, says(&inner)), (sent, PEER, told), "{program}");
    }
    // A reply that comes all the same is the client's.
    let way = Way { from: (FAR, six(FAR)), to: (GATEWAY, CLIENT6) };
    let reply = segment6(way, (80, 40_000), SYN_ACK);
    let ran = rig.run(program, &vxlan(VNI, &reply));
    let seen = see6(&ran.packet);
    assert_eq!((seen.from, seen.to, ports(&seen)), (NODE6, CLIENT6, (8080, 40_000)));
}

#[test]
fn nothing_is_told_where_replies_come_back() {
    let mut rig = rig(FAR);
    flags(&mut rig, SERVICE_RESETS);
    let packet = |port, flags| from_client(|way| segment6(way, (port, 8080), flags));
    let says = |ran: Ran| says(&untunnel_any(&ran.packet).2);
    assert_eq!(says(rig.run("from_underlay", &packet(40_000, SYN))), None);
    // Changed at run time, flows go on as they began, and new ones do as it says.
    flags(&mut rig, SERVICE_DSR);
    assert_eq!(says(rig.run("from_underlay", &packet(40_000, ACK))), None);
    assert!(says(rig.run("from_underlay", &packet(40_001, SYN))).is_some());
    // Only the node that has changed a client's port knows it.
    rig.publish6(PROTO_TCP, 9090, SERVICE, 80);
    let other = from_client(|way| segment6(way, (40_001, 9090), SYN));
    let ran = rig.run("from_underlay", &other);
    let inner = untunnel_any(&ran.packet).2;
    assert_ne!(ports(&see6(&inner)).0, 40_001);
    assert_eq!(says(ran), None);
}

#[test]
fn replies_go_straight_to_the_client_once_the_node_that_was_asked_knows_of_an_answer() {
    for address in ASKED6 {
        let mut rig = rig(NEAR);
        let asked = (address, 8080);
        connected(&mut rig, asked, (CLIENT6, 40_000));
        let reply = |flags| segment6(outward(CLIENT6), (80, 40_000), flags);
        straight(&rig.run("from_container", &reply(ACK)), asked, 40_000);
        // That node must hear of the end, and answers again with what the client may not have got.
        for flags in [FIN_ACK, RST, SYN_ACK] {
            through(&rig.run("from_container", &reply(flags)), PEER, (CLIENT6, 40_000));
        }

        let odd = said(address, 8080, &udp6(inward(CLIENT6), (40_000, 80), b"odd"));
        rig.run("from_underlay", &vxlan(VNI, &odd));
        let even = udp6(outward(CLIENT6), (80, 40_000), b"even");
        through(&rig.run("from_container", &even), PEER, (CLIENT6, 40_000));
        let seen = straight(&rig.run("from_container", &even), asked, 40_000);
        assert_eq!(seen.message[8..], *b"even");
    }
}

#[test]
fn on_an_ipv6_underlay_too() {
    let mut rig = on(Rig::on_ipv6(), NEAR);
    let asked = (ASKED6[0], 8080);
    let odd = said(asked.0, asked.1, &udp6(inward(CLIENT6), (40_000, 80), b"odd"));
    let even = udp6(outward(CLIENT6), (80, 40_000), b"even");
    let ran = rig.run("from_underlay6", &vxlan6(VNI, &odd));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    let ran = rig.run("from_container", &even);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    assert_eq!(untunnel6(&ran.packet).1, PEER6);
    straight(&rig.run("from_container", &even), asked, 40_000);
}

#[test]
fn a_node_is_not_believed_about_what_it_may_not_say() {
    type Case = (&'static str, (Ipv6Addr, u16), fn(&mut Rig));
    let asked = (ASKED6[0], 8080);
    let cases: [Case; 9] = [
        ("a port that is not published", (ASKED6[0], 22), |_| {}),
        ("another target", asked, |rig| rig.publish6(PROTO_TCP, 8080, SERVICE, 81)),
        ("a port of IPv4 alone", asked, |rig| rig.publish(PROTO_TCP, 8080, SERVICE, 80)),
        ("a service whose replies come back", asked, |rig| flags(rig, SERVICE_RESETS)),
        ("no service", asked, |rig| rig.set(|state| state.services.clear())),
        ("an address that nobody has", (ip6(9, 9), 8080), |_| {}),
        ("an address of another node's", (ip6(8, 8), 8080), |rig| {
            knows(rig, OTHER.into(), &[ip6(8, 8)]);
        }),
        ("a container as the client", asked, |rig| {
            rig.set(|state| {
                state.subnets6.insert(Subnet6Key { prefix: 64, ip: ip6(0, 0).into() }, 9);
            });
        }),
        ("this host as the client", asked, |rig| {
            rig.set(|state| {
                state.local_addrs6.insert(CLIENT6.into(), 1);
            });
        }),
    ];
    for (what, asked, change) in cases {
        let mut rig = rig(NEAR);
        change(&mut rig);
        connected(&mut rig, asked, (CLIENT6, 40_000));
        let ran = rig.run("from_container", &data(outward(CLIENT6), (80, 40_000)));
        assert_eq!(ran.counted, [Reason::Encapsulated], "{what}");
        through(&ran, PEER, (CLIENT6, 40_000));
        assert!(rig.conntrack().iter().all(|(_, e)| e.flags & DSR == 0), "{what}");
    }
}

#[test]
fn where_there_is_no_way_from_here_replies_go_through_the_node_that_was_asked() {
    let mut rig = rig(NEAR);
    let client = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77), 40_000);
    connected(&mut rig, (ASKED6[0], 8080), client);
    assert!(rig.conntrack().iter().any(|(_, e)| e.flags & DSR != 0));
    let ran = rig.run("from_container", &data(outward(client.0), (80, 40_000)));
    through(&ran, PEER, client);
}

#[test]
fn so_they_do_when_the_address_that_was_asked_is_forgotten() {
    let mut rig = rig(NEAR);
    connected(&mut rig, (ASKED6[0], 8080), (CLIENT6, 40_000));
    let reply = data(outward(CLIENT6), (80, 40_000));
    straight(&rig.run("from_container", &reply), (ASKED6[0], 8080), 40_000);
    for map in ["addr6_ids", "addr6_ids_new"] {
        for (number, address) in rig.outsiders(map) {
            if Ipv6Addr::from(address) == ASKED6[0] {
                rig.set_outsider(map, number, None);
            }
        }
    }
    through(&rig.run("from_container", &reply), PEER, (CLIENT6, 40_000));
    // Until the client speaks again.
    let ack = said(ASKED6[0], 8080, &data(inward(CLIENT6), (40_000, 80)));
    rig.run("from_underlay", &vxlan(VNI, &ack));
    straight(&rig.run("from_container", &reply), (ASKED6[0], 8080), 40_000);
}

#[test]
fn a_tuple_that_is_used_again_is_answered_as_it_was_asked_last() {
    let mut rig = rig(NEAR);
    rig.publish6(PROTO_TCP, 9090, SERVICE, 80);
    let client = (CLIENT6, 40_000);
    let reply = data(outward(CLIENT6), (80, 40_000));
    for asked in [(ASKED6[0], 8080), (ASKED6[1], 8080), (ASKED6[1], 9090)] {
        connected(&mut rig, asked, client);
        straight(&rig.run("from_container", &reply), asked, 40_000);
    }
    // Then through the node again.
    let syn = segment6(inward(CLIENT6), (40_000, 80), SYN);
    rig.run("from_underlay", &vxlan(VNI, &syn));
    rig.run("from_container", &segment6(outward(CLIENT6), (80, 40_000), SYN_ACK));
    through(&rig.run("from_container", &reply), PEER, client);
}

#[test]
fn a_clients_second_flow_with_the_same_tuple_goes_back_through_its_node() {
    let mut rig = rig(NEAR);
    rig.node(OTHER, &[VNI]);
    knows(&mut rig, OTHER.into(), &[ip6(8, 8)]);
    connected(&mut rig, (ASKED6[0], 8080), (CLIENT6, 40_000));
    let syn = said(ip6(8, 8), 8080, &segment6(inward(CLIENT6), (40_000, 80), SYN));
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &syn));
    let (translated, _) = ports(&see6(&ran.packet));
    assert_ne!(translated, 40_000);
    for flags in [SYN_ACK, ACK] {
        let ran = rig.run("from_container", &segment6(outward(CLIENT6), (80, translated), flags));
        through(&ran, OTHER, (CLIENT6, 40_000));
    }
    let ran = rig.run("from_container", &data(outward(CLIENT6), (80, 40_000)));
    straight(&ran, (ASKED6[0], 8080), 40_000);
}

#[test]
fn flows_and_addresses_that_are_in_use_leave_the_tables_of_those_that_begin() {
    let mut rig = rig(NEAR);
    connected(&mut rig, (ASKED6[0], 8080), (CLIENT6, 40_000));
    let [used, begun] = FLOWS.map(|map| rig.flows(map).len());
    assert_eq!((used, begun), (1, 0));
    let mut kept: Vec<Ipv6Addr> =
        rig.outsiders("addr6_ids").into_iter().map(|(_, address)| address.into()).collect();
    kept.sort_unstable();
    assert_eq!(kept, [ASKED6[0], CLIENT6]);
    assert!(rig.outsiders("addr6_ids_new").is_empty());
}

#[test]
fn later_fragments_of_a_reply_go_straight_as_their_first_one() {
    let mut rig = rig(NEAR);
    let odd = said(ASKED6[0], 8080, &udp6(inward(CLIENT6), (40_000, 80), b"odd"));
    rig.run("from_underlay", &vxlan(VNI, &odd));
    rig.run("from_container", &udp6(outward(CLIENT6), (80, 40_000), b"even"));
    let way = outward(CLIENT6);
    let datagram = udp6(way, (80, 40_000), &[9; 1000]);
    let (first, rest) = datagram[54..].split_at(504);
    let parts = [(1_u16, first), (504, rest)].map(|(field, part)| {
        let [high, low] = field.to_be_bytes();
        let header = [PROTO_UDP, 0, high, low, 0, 0, 0, 77];
        let ran = rig.run("from_container", &raw6(way, 44, 64, &[&header[..], part].concat()));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentDsr][..]));
        assert_eq!(ran.packet[22..38], ASKED6[0].octets());
        ran.packet[62..].to_vec()
    });
    let whole = parts.concat();
    let from = Way { from: (NEAR, ASKED6[0]), to: (GATEWAY, CLIENT6) };
    let seen = see6(&raw6(from, PROTO_UDP, 64, &whole));
    assert_eq!(ports(&seen), (8080, 40_000), "with a right checksum");
}

#[test]
fn a_reply_that_does_not_fit_the_way_to_its_client_is_told_so_here() {
    let mut rig = rig(NEAR);
    let odd = said(ASKED6[0], 8080, &udp6(inward(CLIENT6), (40_000, 80), b"odd"));
    rig.run("from_underlay", &vxlan(VNI, &odd));
    rig.run("from_container", &udp6(outward(CLIENT6), (80, 40_000), b"even"));
    let large = udp6(outward(CLIENT6), (80, 40_000), &[0; 1501 - 48]);
    let ran = rig.run("from_container", &large);
    assert_eq!(ran.counted, [Reason::TooBigAnswered]);
    let seen = see6(&ran.packet);
    assert_eq!((seen.from, seen.to, &seen.message[..2]), (six(GATEWAY), six(NEAR), &[2, 0][..]));
    assert_eq!(seen.message[4..8], 1500_u32.to_be_bytes());
    assert_eq!(seen.message[8..], large[14..14 + 1232], "quotes what the backend sent");
}

#[test]
fn what_a_backend_says_of_its_own_goes_through_the_node_that_was_asked() {
    let mut rig = rig(NEAR);
    let odd = udp6(inward(CLIENT6), (40_000, 80), b"odd");
    rig.run("from_underlay", &vxlan(VNI, &said(ASKED6[0], 8080, &odd)));
    rig.run("from_container", &udp6(outward(CLIENT6), (80, 40_000), b"even"));
    let message = [&[1, 4, 0, 0, 0, 0, 0, 0][..], &odd[14..]].concat();
    let ran = rig.run("from_container", &icmpv6(outward(CLIENT6), 64, &message));
    assert_eq!(ran.counted, [Reason::Encapsulated]);
    let (_, node, inner) = untunnel_any(&ran.packet);
    assert_eq!((node, inner[14..].len()), (PEER, 40 + message.len()));
}
