//! Random IPv6 packets between endpoints, and packets that must not arrive anywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{Be16, Be32, Frontend, hash, maps::EndpointKey};
use rand::{RngExt as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{
    world::{NODES, PORTS, address6, any, beside, taken6},
    world6::ASKED6,
};
use crate::{
    model::{Action, FlowKey, Name, Tables, ones_complement},
    rig::{
        IFINDEX, NODE_MAC, NODE6, PEER, PEER_MAC, PEER6, ip6, link_local, mac,
        packets6::{Way, icmpv6, ping6, raw6, sealed, solicit, solicitation, tcp6, udp6},
    },
};

/// Clients outside: one with a known MAC, one without, one without a route, and one with an address
/// inside.
pub const CLIENTS6: [Ipv6Addr; 4] = [
    PEER6,
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x12),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77),
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 7),
];

/// Destinations of containers outside their network, and groups.
const ELSEWHERE: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x77),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16),
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::UNSPECIFIED,
];

/// A packet from the endpoint behind the rig's interface.
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
    let own_name = Name::inside(beside(me));
    if let Some(told) = error_about(rng, tables, |k| k.vni == link.vni && k.src == own_name) {
        return told.frame((link.mac.bytes(), mac(me).bytes()));
    }
    if let Some(tuple) = known(rng, tables, |k| k.vni == link.vni && k.src == own_name) {
        return tuple.frame(rng, (link.mac.bytes(), mac(me).bytes()));
    }
    let (next, to) = taken6(rng, tables, link.vni, &[0, 1, 2, 3, 4, 4, 4]);
    let to = match rng.random_range(0..10) {
        0 => any(rng, &ELSEWHERE),
        1 => any(rng, &[NODE6, ip6(255, 2)]),
        2 => any(rng, &CLIENTS6),
        _ => to,
    };
    let way = Way { from: (me, source), to: (next, to) };
    if rng.random_bool(0.5) {
        let tuple = Tuple6::fresh(rng, (source, to));
        return tuple.frame(rng, (link.mac.bytes(), mac(next).bytes()));
    }
    match rng.random_range(0..10) {
        0..3 => solicit((me, source), to),
        3 => discovery(rng, way),
        4 => hidden(rng, way),
        _ => packet(rng, way),
    }
}

/// A packet from a client outside to the host.
pub fn to_host(rng: &mut SmallRng, tables: &Tables) -> Vec<u8> {
    let macs = (PEER_MAC, NODE_MAC);
    if let Some(told) = error_about(rng, tables, |k| k.vni == 0) {
        return told.frame(macs);
    }
    if let Some(tuple) = known(rng, tables, |k| k.vni == 0) {
        return tuple.frame(rng, macs);
    }
    let to = any(rng, &[NODE6, NODE6, NODE6, ip6(255, 2), PEER6]);
    let from = any(rng, &CLIENTS6);
    Tuple6::fresh(rng, (from, to)).frame(rng, macs)
}

/// The frame inside a tunnel packet on a network, and the node that sent it.
pub fn from_tunnel(rng: &mut SmallRng, tables: &Tables, vni: u32) -> (Ipv4Addr, Vec<u8>) {
    let told = error_about(rng, tables, |k| k.vni == vni);
    let flow = known(rng, tables, |k| k.vni == vni);
    if told.is_some() || flow.is_some() {
        let tuple = told.as_ref().map(|told| told.of).or(flow).expect("one of both");
        let backends = tables.agent.backends.values();
        let of_backend = backends.filter(|b| beside(b.ip.into()) == tuple.ends.0).map(|b| b.node);
        let endpoints = tables.agent.endpoints6.iter();
        let of_endpoint = endpoints
            .filter(|(k, _)| k.vni == vni && k.ip == tuple.ends.0.into())
            .map(|(_, e)| e.node);
        let nodes: Vec<Be32> =
            of_backend.chain(of_endpoint).filter(|node| *node != Be32::ZERO).collect();
        let node = nodes.choose(rng).copied().map_or(PEER, Ipv4Addr::from);
        let macs = (PEER_MAC, NODE_MAC);
        let mut frame = match told {
            Some(told) => told.frame(macs),
            None => tuple.frame(rng, macs),
        };
        if CLIENTS6.contains(&tuple.ends.0) {
            asked(rng, tables, tuple, &mut frame);
        }
        return (node, frame);
    }
    if rng.random_bool(0.3) {
        let to = taken6(rng, tables, vni, &[1]);
        let from = any(rng, &CLIENTS6);
        let tuple = Tuple6::fresh(rng, (from, to.1));
        let mut frame = tuple.frame(rng, (PEER_MAC, mac(to.0).bytes()));
        asked(rng, tables, tuple, &mut frame);
        return (any(rng, &NODES), frame);
    }
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

/// Sometimes adds its client's frontend to a frame: mostly a port that is published to the present
/// destination port.
fn asked(rng: &mut SmallRng, tables: &Tables, tuple: Tuple6, frame: &mut [u8]) {
    if rng.random_bool(0.3) {
        return;
    }
    let published = tables.agent.published.iter();
    let fits =
        published.filter(|(key, p)| key.proto == tuple.proto && p.target.get() == tuple.ports.1);
    let ports: Vec<_> = fits.map(|(key, _)| key.port.get()).collect();
    let port = match ports.choose(rng) {
        Some(port) if rng.random_bool(0.8) => *port,
        _ => any(rng, &PORTS),
    };
    let address = if rng.random_bool(0.7) { ASKED6[0] } else { any(rng, &ASKED6) };
    let header =
        Frontend { address: hash::of_node(&address.into()), port: Be16::new(port) }.header6();
    frame[..6].copy_from_slice(&header.dst.bytes());
    frame[6..12].copy_from_slice(&header.src.bytes());
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

/// The tuple of a packet.
#[derive(Clone, Copy)]
struct Tuple6 {
    ends: (Ipv6Addr, Ipv6Addr),
    proto: u8,
    ports: (u16, u16),
}

impl Tuple6 {
    fn fresh(rng: &mut SmallRng, ends: (Ipv6Addr, Ipv6Addr)) -> Self {
        let proto = any(rng, &[6, 6, 6, 17, 17, 17, 132, 58]);
        Self { ends, proto, ports: (any(rng, &PORTS), any(rng, &PORTS)) }
    }

    /// A packet with this tuple; some have extension headers or are fragments.
    fn frame(self, rng: &mut SmallRng, (from, to): ([u8; 6], [u8; 6])) -> Vec<u8> {
        let packet = self.packet(rng);
        [&to[..], &from, &[0x86, 0xdd], &packet].concat()
    }

    fn packet(self, rng: &mut SmallRng) -> Vec<u8> {
        let length = any(rng, &[0, 1, 9, 64, 300, 1360, 1382, 1390, 1452]);
        let payload: Vec<u8> = (0..length).map(|i| i as u8 ^ 0xa5).collect();
        let mut body = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        let sum = match self.proto {
            6 => {
                let flags = any(rng, &[0x02, 0x02, 0x12, 0x10, 0x18, 0x18, 0x11, 0x04, 0xff, 0]);
                body.extend([0, 0, 3, 0xe8, 0, 0, 0, 1, 0x50, flags, 0xfa, 0, 0, 0, 0, 0]);
                Some(16)
            }
            17 => {
                body.extend(((8 + payload.len()) as u16).to_be_bytes());
                body.extend([0, 0]);
                Some(6)
            }
            132 => {
                let chunk = any(rng, &[1, 1, 2, 0, 0, 6, 14]);
                body.extend([0, 0, 0, 0, 1, 2, 3, 4, chunk, 0, 0, 4]);
                None
            }
            _ => {
                let message = [&[any(rng, &[128, 129, 1, 2]), 0, 0, 0, 0, 0, 0, 0][..], &payload];
                let message = sealed(self.ends.0, self.ends.1, &message.concat());
                return self.header(rng, 58, &message);
            }
        };
        body.extend(payload);
        if let Some(at) = sum.filter(|_| self.proto != 17 || rng.random_bool(0.95)) {
            let length = (body.len() as u32).to_be_bytes();
            let (src, dst) = (self.ends.0.octets(), self.ends.1.octets());
            let pseudo = [&src[..], &dst, &length, &[0, 0, 0, self.proto], &body].concat();
            let sum = ones_complement(&pseudo);
            let sum = if sum == 0 && self.proto == 17 { 0xffff } else { sum };
            body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut next = self.proto;
        if rng.random_bool(0.15) {
            let header = any(rng, &[44, 44, 44, 60, 0, 51]);
            // The longest is more than is looked behind.
            let units = if header == 60 { any(rng, &[1, 1, 32, 64, 65]) } else { 1 };
            let size = if header == 51 { 24 } else { 8 * usize::from(units) };
            let mut extension = vec![next, if header == 51 { 4 } else { units - 1 }];
            extension.resize(size, 0);
            if header == 44 {
                // A few ids, of few packets, so that later fragments meet their first one.
                extension[2..4].copy_from_slice(&any::<u16>(rng, &[0, 1, 1, 9, 184]).to_be_bytes());
                extension[7] = any(rng, &[7, 7, 8]);
            }
            body.splice(0..0, extension);
            next = header;
        }
        self.header(rng, next, &body)
    }

    fn header(self, rng: &mut SmallRng, next: u8, body: &[u8]) -> Vec<u8> {
        let class = any(rng, &[0, 0, 0, 0x10, 0x20, 0x30]);
        let mut packet = vec![0x60, class, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([next, 64]);
        packet.extend(self.ends.0.octets());
        packet.extend(self.ends.1.octets());
        packet.extend(body);
        packet
    }
}

/// The address of a name, as packets have it.
fn address_of(rng: &mut SmallRng, tables: &Tables, name: Name) -> Ipv6Addr {
    let IpAddr::V6(ip) = name.ip else { unreachable!("flows of IPv6 were chosen") };
    let is_forgotten =
        name.outside && !tables.clients.contains(&ip) && !tables.clients_new.contains(&ip);
    if is_forgotten { any(rng, &CLIENTS6) } else { ip }
}

fn sorted(tables: &Tables, of: impl Fn(&FlowKey) -> bool) -> Vec<FlowKey> {
    let is_one = |key: &FlowKey| key.is_ipv6() && of(key);
    let mut keys: Vec<_> = tables.flows().map(|(key, _)| *key).filter(is_one).collect();
    keys.sort();
    keys
}

fn tuple_of(rng: &mut SmallRng, tables: &Tables, key: &FlowKey) -> Tuple6 {
    let ends = (address_of(rng, tables, key.src), address_of(rng, tables, key.dst));
    Tuple6 { ends, proto: key.proto, ports: (key.sport, key.dport) }
}

/// The tuple of a tracked flow, sometimes that of its client.
fn known(rng: &mut SmallRng, tables: &Tables, of: impl Fn(&FlowKey) -> bool) -> Option<Tuple6> {
    let keys = sorted(tables, of);
    if keys.is_empty() || rng.random_bool(0.4) {
        return None;
    }
    let key = any(rng, &keys);
    let tuple = tuple_of(rng, tables, &key);
    let is_return = tables.flows().any(|(k, e)| *k == key && e.action == Action::Reverse);
    if is_return && rng.random_bool(0.5) {
        // The client speaks again.
        let (ends, ports) = ((tuple.ends.1, tuple.ends.0), (tuple.ports.1, tuple.ports.0));
        return Some(Tuple6 { ends, ports, ..tuple });
    }
    Some(tuple)
}

/// An ICMPv6 error about a packet, sent like the packets of a tuple.
struct Told {
    of: Tuple6,
    packet: Vec<u8>,
}

impl Told {
    fn frame(&self, (from, to): ([u8; 6], [u8; 6])) -> Vec<u8> {
        [&to[..], &from, &[0x86, 0xdd], &self.packet].concat()
    }
}

/// Sometimes an ICMPv6 error that quotes a packet of a known flow, in its opposite direction.
fn error_about(rng: &mut SmallRng, tables: &Tables, of: impl Fn(&FlowKey) -> bool) -> Option<Told> {
    if !rng.random_bool(0.15) {
        return None;
    }
    let key = *sorted(tables, of).choose(rng)?;
    let of = tuple_of(rng, tables, &key);
    let (ends, ports) = ((of.ends.1, of.ends.0), (of.ports.1, of.ports.0));
    let mut quote = Tuple6 { ends, ports, ..of }.packet(rng);
    quote.truncate(any(rng, &[39, 47, 48, 48, 60, 61, 80, 1232]));
    let kind = any(rng, &[1, 1, 2, 3, 4, 5, 127]);
    let mut message = vec![kind, rng.random_range(0..6), 0, 0, 0, 0, 5, 0];
    message.extend(quote);
    let router = any(rng, &[CLIENTS6[0], CLIENTS6[1], ip6(1, 7)]);
    let from = if rng.random_bool(0.7) { of.ends.0 } else { router };
    let to = if rng.random_bool(0.95) { of.ends.1 } else { CLIENTS6[2] };
    let error = Tuple6 { ends: (from, to), proto: 58, ports: (0, 0) };
    let message = sealed(from, to, &message);
    Some(Told { of, packet: error.header(rng, 58, &message) })
}

/// Solicitations with a fault, and other messages of neighbour discovery.
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
