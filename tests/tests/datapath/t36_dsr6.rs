//! DSR to an IPv6 client, as far as it differs from IPv4: address ids stand for addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be16, Be32, Frontend, Reason, hash,
    maps::{
        ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, Frontend6Key, SERVICE_DSR, SERVICE_RESETS,
    },
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    NODE_MAC, PEER, PEER_MAC, PEER6, REDIRECT, Ran, Rig, VNI, ip6, mac,
    packets::{untunnel_any, vxlan},
    packets6::*,
    underlay6::{untunnel6, vxlan6},
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const NO_VIP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// A client outside with a known MAC.
const CLIENT6: Ipv6Addr = PEER6;
/// Addresses of the node that was asked.
const ASKED6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99),
];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;

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

/// A frame with the frontend, as the ingress node sends it.
fn said(address: Ipv6Addr, port: u16, frame: &[u8]) -> Vec<u8> {
    let address = hash::of_node(&address.into());
    let header = Frontend { address, port: Be16::new(port) }.header6();
    [&header.dst.bytes(), &header.src.bytes(), &frame[12..]].concat()
}

fn six(ip: Ipv4Addr) -> Ipv6Addr {
    ip6(1, ip.octets()[3])
}

/// From a client outside to an endpoint, as in the tunnel.
fn inward(client: Ipv6Addr) -> Way {
    Way { from: (GATEWAY, client), to: (NEAR, six(NEAR)) }
}

/// From the endpoint here to a client outside.
fn outward(client: Ipv6Addr) -> Way {
    Way { from: (NEAR, six(NEAR)), to: (GATEWAY, client) }
}

fn ports(seen: &Seen6) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([seen.message[at], seen.message[at + 1]]);
    (port(0), port(2))
}

/// Checks that a container's reply went directly to the client, from the frontend. Verifies
/// checksums.
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

/// Opens a connection at the backend's node: the client's SYN, the backend's answer, the client's
/// ACK.
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
fn addresses_that_are_in_use_leave_the_table_of_those_that_begin() {
    let mut rig = rig(NEAR);
    connected(&mut rig, (ASKED6[0], 8080), (CLIENT6, 40_000));
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
