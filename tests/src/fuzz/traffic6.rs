//! Random IPv6 packets between endpoints, and the ones that must not get anywhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{Be32, maps::EndpointKey};
use rand::{RngExt as _, rngs::SmallRng};

use super::world::{NODES, PORTS, address6, any, taken6};
use crate::{
    model::Tables,
    rig::{
        IFINDEX, PEER, link_local, mac,
        packets6::{Way, icmpv6, ping6, raw6, solicit, solicitation, tcp6, udp6},
    },
};

/// Where containers send to outside their network, and to groups.
const ELSEWHERE: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x77),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16),
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::UNSPECIFIED,
];

/// What the endpoint behind the rig's interface sends.
pub fn from_container(rng: &mut SmallRng, tables: &Tables) -> Vec<u8> {
    let link = tables.agent.links.get(&IFINDEX).copied().unwrap_or_default();
    let own = tables.agent.links6.get(&IFINDEX).copied().unwrap_or_default();
    let me = Ipv4Addr::from(link.ip);
    let source = match rng.random_range(0..10) {
        0 | 1 => link_local(me),
        2 => Ipv6Addr::UNSPECIFIED,
        3 => address6(rng, link.vni),
        _ => own.ip.into(),
    };
    let (next, to) = taken6(rng, tables, link.vni, &[0, 1, 2, 3, 4]);
    let to = if rng.random_bool(0.1) { any(rng, &ELSEWHERE) } else { to };
    let way = Way { from: (me, source), to: (next, to) };
    match rng.random_range(0..10) {
        0..3 => solicit((me, source), to),
        3 => discovery(rng, way),
        4 => hidden(rng, way),
        _ => packet(rng, way),
    }
}

/// The frame inside a tunnel packet on a network, and the node that it comes from.
pub fn from_tunnel(rng: &mut SmallRng, tables: &Tables, vni: u32) -> (Ipv4Addr, Vec<u8>) {
    let way = Way { from: taken6(rng, tables, vni, &[2]), to: taken6(rng, tables, vni, &[1]) };
    let key = EndpointKey { vni, ip: way.from.0.into() };
    let node = tables.agent.endpoints.get(&key).map_or(Be32::ZERO, |endpoint| endpoint.node);
    let sender = match node {
        node if node == Be32::ZERO => PEER,
        _ if rng.random_bool(0.1) => any(rng, &NODES),
        node => node.into(),
    };
    (sender, packet(rng, way))
}

fn packet(rng: &mut SmallRng, way: Way) -> Vec<u8> {
    let ports = (any(rng, &PORTS), any(rng, &PORTS));
    let mut frame = of_any_kind(rng, way, ports);
    // Each ECN codepoint.
    frame[15] |= any(rng, &[0, 0x10, 0x20, 0x20, 0x30]);
    frame
}

fn of_any_kind(rng: &mut SmallRng, way: Way, ports: (u16, u16)) -> Vec<u8> {
    match rng.random_range(0..6) {
        0 => tcp6(way, ports),
        1 | 2 => udp6(way, ports, &vec![0x5a; any(rng, &[0, 1, 300, 1402, 1403])]),
        3 | 4 => ping6(way),
        // ICMPv6 error, fragment, ESP, nothing.
        _ => raw6(
            way,
            any(rng, &[58, 44, 50, 59, 132]),
            64,
            &vec![1; any(rng, &[0, 3, 4, 40, 1411])],
        ),
    }
}

/// Solicitations with something wrong, and other messages of neighbour discovery.
fn discovery(rng: &mut SmallRng, way: Way) -> Vec<u8> {
    let options: &[&[u8]] = &[&[], &[14, 1, 1, 2, 3, 4, 5, 6], &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 1]];
    let own = [&[1, 1][..], &mac(way.from.0).bytes()].concat();
    let option = if rng.random_bool(0.4) { &own[..] } else { any(rng, options) };
    let mut message = solicitation(way.to.1, option);
    message[0] = any(rng, &[133, 134, 135, 135, 135, 135, 136, 137]);
    message[1] = any(rng, &[0, 0, 0, 1]);
    if rng.random_bool(0.1) {
        message.truncate(any(rng, &[4, 8, 23]));
    }
    icmpv6(way, any(rng, &[255, 255, 255, 64]), &message)
}

/// Extension headers, and what may be behind them.
fn hidden(rng: &mut SmallRng, way: Way) -> Vec<u8> {
    let last = any(rng, &[58, 58, 6, 17, 44]);
    let count = any(rng, &[1, 1, 2, 7, 8, 9]);
    let headers: Vec<u8> = (0..count).map(|_| any(rng, &[0, 43, 60, 51, 135, 139, 140])).collect();
    let mut payload = Vec::new();
    for (i, header) in headers.iter().enumerate() {
        let next = headers.get(i + 1).copied().unwrap_or(last);
        let (field, length) = if *header == 51 { (4, 24) } else { (0, 8) };
        let mut extension = vec![0; length];
        extension[..2].copy_from_slice(&[next, field]);
        payload.extend(extension);
    }
    if rng.random_bool(0.9) {
        payload.extend([any(rng, &[128, 134, 135, 136]), 0, 0, 0, 0, 0, 0, 0]);
    }
    raw6(way, headers[0], 255, &payload)
}
