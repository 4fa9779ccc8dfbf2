//! Random packets: most of them fit the maps, some are changed, and some are mere noise.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{BRIDGE_VNI, Be32, INGRESS_VNI};
use rand::{Rng as _, RngExt as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{
    Step, traffic6,
    world::{CLIENTS, NODES, PORTS, UNRESOLVED, VNIS, any, taken},
};
use crate::{
    model::{Action, FlowKey, Program, Tables, ones_complement},
    rig::{IFINDEX, NODE, NODE_MAC, NODE6, OTHER_VNI, PEER, PEER_MAC, VNI, mac, vtep6},
};

/// Destinations of containers outside their network.
const OUTSIDE: [Ipv4Addr; 12] = [
    CLIENTS[0],
    CLIENTS[0],
    CLIENTS[0],
    CLIENTS[1],
    CLIENTS[1],
    CLIENTS[2],
    CLIENTS[3],
    NODE,
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(0, 0, 0, 7),
    Ipv4Addr::new(10, 0, 2, 5),
];

/// Groups; class E has none. The subnets' broadcast addresses end with 255.
const GROUPS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(224, 0, 0, 251),
    Ipv4Addr::new(239, 200, 1, 2),
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(240, 0, 0, 1),
];

/// The tuple of a packet.
#[derive(Clone, Copy)]
struct Tuple {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    proto: u8,
    sport: u16,
    dport: u16,
}

impl Tuple {
    /// That of an IPv4 flow.
    fn of(key: &FlowKey) -> Self {
        let ipv4 = |ip| match ip {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => unreachable!("flows of IPv4 were chosen"),
        };
        let FlowKey { proto, sport, dport, .. } = *key;
        Self { src: ipv4(key.src.ip), dst: ipv4(key.dst.ip), proto, sport, dport }
    }
}

/// A packet for a program.
pub fn random(rng: &mut SmallRng, tables: &Tables) -> Step {
    let program = any(rng, &Program::ALL);
    let mut packet = match rng.random_range(0..100) {
        0 => noise(rng),
        _ if program == Program::Container => from_container(rng, tables),
        _ => from_underlay(rng, tables),
    };
    if rng.random_bool(0.2) {
        mutate(rng, &mut packet);
    }
    let segment = if rng.random_bool(0.1) { segment_size(rng, program, &mut packet) } else { 0 };
    Step { program, packet, segment }
}

/// Makes the packet an aggregate, if it may be one, and returns its segment size. Copies of it
/// would pass the kernel's own segmentation, which does not know its type.
fn segment_size(rng: &mut SmallRng, program: Program, packet: &mut [u8]) -> u16 {
    let is_to_group = |at: usize| {
        let ip = packet.get(at..at + 34);
        ip.is_some_and(|ip| ip[0] & 1 == 1 || ip[30] >= 224 || ip[33] == 255)
    };
    if program == Program::Xdp || is_to_group(0) || is_to_group(50) {
        return 0;
    }
    if rng.random_bool(0.2) {
        // The zero length of a packet over 64 KiB: in the outer or the inner header, of IPv4 or
        // IPv6.
        let at = any(rng, &[16, 18, 66, 68]);
        if let Some(length) = packet.get_mut(at..at + 2) {
            length.fill(0);
        }
    }
    any(rng, &[1, 100, 1348, 1400, 1410, 1460, 1480, u16::MAX])
}

fn noise(rng: &mut SmallRng) -> Vec<u8> {
    let mut packet = vec![0; rng.random_range(14..200)];
    rng.fill_bytes(&mut packet);
    packet
}

fn mutate(rng: &mut SmallRng, packet: &mut Vec<u8>) {
    match rng.random_range(0..4) {
        0 => packet.truncate(rng.random_range(14..=packet.len())),
        1 => packet.extend(vec![0; rng.random_range(1..20)]),
        _ => {
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..packet.len());
                let byte = rng.random();
                packet[at] = any(rng, &[0, 1, 0x45, 0x46, 0xff, byte]);
            }
        }
    }
}

fn tuple(rng: &mut SmallRng, src: Ipv4Addr, dst: Ipv4Addr) -> Tuple {
    let proto = any(rng, &[1, 6, 6, 6, 17, 17, 17, 132]);
    Tuple { src, dst, proto, sport: any(rng, &PORTS), dport: any(rng, &PORTS) }
}

/// The tuple of a tracked flow, on one of `vnis`.
fn known(
    rng: &mut SmallRng,
    tables: &Tables,
    from: impl Fn(&FlowKey) -> bool,
) -> Option<(u32, Tuple)> {
    let is_one = |key: &&FlowKey| !key.is_ipv6() && from(key);
    let mut keys: Vec<_> = tables.flows().map(|(key, _)| key).filter(is_one).collect();
    // The map's own order is not the seed's.
    keys.sort();
    if keys.is_empty() || rng.random_bool(0.4) {
        return None;
    }
    let key = any(rng, &keys);
    let tuple = Tuple::of(key);
    let is_return = tables.flows().any(|(k, e)| k == key && e.action == Action::Reverse);
    if is_return && rng.random_bool(0.5) {
        // The client speaks again.
        let Tuple { src, dst, sport, dport, .. } = tuple;
        return Some((key.vni, Tuple { src: dst, dst: src, sport: dport, dport: sport, ..tuple }));
    }
    Some((key.vni, tuple))
}

fn from_container(rng: &mut SmallRng, tables: &Tables) -> Vec<u8> {
    if rng.random_bool(0.3) {
        return traffic6::from_container(rng, tables);
    }
    let link = tables.agent.links.get(&IFINDEX).copied().unwrap_or_default();
    let own = Ipv4Addr::from(link.ip);
    if rng.random_bool(0.06) {
        return to_group(rng, own, link.mac.bytes());
    }
    let to = if rng.random_bool(0.3) {
        any(rng, &OUTSIDE)
    } else {
        taken(rng, tables, link.vni, &[0, 1, 2, 3, 4])
    };
    if rng.random_bool(0.1) {
        return arp(rng, own, to);
    }
    if let Some(error) = error_about(rng, tables, |k| k.vni == link.vni && k.src.ip == own) {
        return ethernet((link.mac.bytes(), mac(error.to).bytes()), &error.packet);
    }
    let fresh = tuple(rng, own, to);
    let reply = known(rng, tables, |key| key.vni == link.vni && key.src.ip == own);
    let tuple = reply.map_or(fresh, |(_, tuple)| tuple);
    ethernet((link.mac.bytes(), mac(tuple.dst).bytes()), &ipv4(rng, tuple))
}

fn from_underlay(rng: &mut SmallRng, tables: &Tables) -> Vec<u8> {
    let macs = (PEER_MAC, NODE_MAC);
    if rng.random_bool(0.2) {
        return traffic6::to_host(rng, tables);
    }
    if rng.random_bool(0.25) {
        let vni = any(rng, &VNIS);
        let (sender, inner) = traffic6::from_tunnel(rng, tables, vni);
        return tunnel(rng, tables, (vni, sender), &inner);
    }
    let known = known(rng, tables, |_| true);
    let vni = known.map_or_else(
        || any(rng, &[0, 0, 0, 0, VNI, VNI, OTHER_VNI, INGRESS_VNI, INGRESS_VNI, BRIDGE_VNI]),
        |k| k.0,
    );
    if vni == 0 {
        if let Some(error) = error_about(rng, tables, |k| k.vni == 0) {
            return ethernet(macs, &error.packet);
        }
        let to = if rng.random_bool(0.95) { NODE } else { any(rng, &CLIENTS) };
        let from = any(rng, &CLIENTS);
        let fresh = tuple(rng, from, to);
        return ethernet(macs, &ipv4(rng, known.map_or(fresh, |k| k.1)));
    }
    if let Some(error) = error_about(rng, tables, |k| k.vni == vni) {
        let sender = node_of(rng, tables, (vni, error.of));
        let macs = (mac(error.of).bytes(), mac(error.to).bytes());
        return tunnel(rng, tables, (vni, sender), &ethernet(macs, &error.packet));
    }
    let (src, dst) = (taken(rng, tables, vni, &[2]), taken(rng, tables, vni, &[1]));
    let src = if rng.random_bool(0.3) { any(rng, &CLIENTS) } else { src };
    let tuple = known.map_or_else(|| tuple(rng, src, dst), |k| k.1);
    let sender = node_of(rng, tables, (vni, tuple.src));
    let mut inner = if rng.random_bool(0.1) {
        to_group(rng, tuple.src, mac(tuple.src).bytes())
    } else {
        ethernet((mac(tuple.src).bytes(), mac(tuple.dst).bytes()), &ipv4(rng, tuple))
    };
    if CLIENTS.contains(&tuple.src) && rng.random_bool(0.5) {
        asked(rng, tables, tuple, &mut inner);
    }
    if rng.random_bool(0.02) {
        // A VLAN tag.
        inner.splice(12..12, [0x81, 0, 0, 5]);
    }
    tunnel(rng, tables, (vni, sender), &inner)
}

/// Adds its client's frontend to a frame: mostly a port that is published to the present
/// destination port.
fn asked(rng: &mut SmallRng, tables: &Tables, tuple: Tuple, frame: &mut [u8]) {
    let published = tables.agent.published.iter();
    let fits =
        published.filter(|(key, p)| key.proto == tuple.proto && p.target.get() == tuple.dport);
    let ports: Vec<_> = fits.map(|(key, _)| key.port.get()).collect();
    let port = match ports.choose(rng) {
        Some(port) if rng.random_bool(0.8) => *port,
        _ => any(rng, &PORTS),
    };
    let odd = [NODE, Ipv4Addr::UNSPECIFIED, GROUPS[0], Ipv4Addr::LOCALHOST, OUTSIDE[11]];
    let address = if rng.random_bool(0.8) { PEER } else { any(rng, &odd) };
    frame[..2].copy_from_slice(&[0x02, 0x42]);
    frame[2..6].copy_from_slice(&address.octets());
    frame[6..10].copy_from_slice(b"\x06ask");
    frame[10..12].copy_from_slice(&port.to_be_bytes());
}

/// A frame in VXLAN on network `vni` from a node.
fn tunnel(
    rng: &mut SmallRng,
    tables: &Tables,
    (vni, sender): (u32, Ipv4Addr),
    inner: &[u8],
) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, any(rng, &[0, 0, 0, 1])];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    let port = tables.config.vxlan_port.get();
    if tables.ipv6 {
        return tunnel6(rng, tables, (sender, port), &payload);
    }
    let outer = Tuple { src: sender, dst: NODE, proto: 17, sport: 50_000, dport: port };
    let mut outer = datagram(outer, &payload);
    outer[6..8].fill(0);
    let ip = header(rng, (sender, NODE, 17), &outer, (&[], 0));
    ethernet((PEER_MAC, NODE_MAC), &ip)
}

/// Like [`tunnel`], on an IPv6 underlay. Some packets have an extension header or are fragments.
fn tunnel6(
    rng: &mut SmallRng,
    tables: &Tables,
    (sender, port): (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let known = tables.agent.vteps6.get(&sender.into());
    let source = known.map_or(vtep6(sender), |vtep| (*vtep).into());
    let mut datagram = [50_000_u16.to_be_bytes(), port.to_be_bytes()].concat();
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let mut next = 17;
    if rng.random_bool(0.06) {
        let header = any(rng, &[60, 44, 44, 51]);
        let length: u8 = if header == 51 { 4 } else { 0 };
        let offset = any(rng, &[0, 1, 8]);
        let size = if header == 51 { 24 } else { 8 };
        let mut extension = vec![next, length, 0, offset];
        extension.resize(size, 0);
        datagram.splice(0..0, extension);
        next = header;
    }
    let class = any(rng, &[0, 0, 0, 0xb8, 1, 2, 3, 0xbb]);
    let mut packet = [&NODE_MAC[..], &PEER_MAC, &[0x86, 0xdd]].concat();
    packet.extend([0x60 | class >> 4, class << 4, 0, 0]);
    packet.extend((datagram.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(NODE6.octets());
    packet.extend(datagram);
    packet
}

/// An ICMP error about a packet, from that packet's destination.
struct Error {
    of: Ipv4Addr,
    to: Ipv4Addr,
    packet: Vec<u8>,
}

/// Sometimes makes an ICMP error that quotes a packet of a known flow, in its opposite direction.
/// `keys` are the candidates. The sender of that flow mostly sends the error.
fn error_about(
    rng: &mut SmallRng,
    tables: &Tables,
    of: impl Fn(&FlowKey) -> bool,
) -> Option<Error> {
    if !rng.random_bool(0.15) {
        return None;
    }
    let is_one = |key: &&FlowKey| !key.is_ipv6() && of(key);
    let mut keys: Vec<_> = tables.flows().map(|(key, _)| key).filter(is_one).collect();
    keys.sort();
    let mut key = **keys.choose(rng)?;
    if rng.random_bool(0.1) {
        // About the other direction.
        key = key.reversed();
    }
    let quoted = Tuple::of(&key.reversed());
    let mut quoted_packet = ipv4(rng, quoted);
    quoted_packet.truncate(any(rng, &[27, 28, 28, 40, 60, 548, 1500]));
    let mut body =
        vec![any(rng, &[3, 3, 3, 11, 12, 5, 4]), rng.random_range(0..6), 0, 0, 0, 0, 0, 0];
    body.extend(quoted_packet);
    let sum = ones_complement(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let inside = Ipv4Addr::new(10, 0, 1, 7);
    let others = [CLIENTS[0], CLIENTS[2], CLIENTS[3], inside];
    let from = if rng.random_bool(0.7) { quoted.dst } else { any(rng, &others) };
    let to = if rng.random_bool(0.95) { quoted.src } else { CLIENTS[1] };
    Some(Error { of: from, to, packet: header(rng, (from, to, 1), &body, (&[], 0)) })
}

/// The node that an address is on, mostly.
fn node_of(rng: &mut SmallRng, tables: &Tables, (vni, ip): (u32, Ipv4Addr)) -> Ipv4Addr {
    if rng.random_bool(0.1) {
        return any(rng, &NODES);
    }
    let backend = tables.agent.backends.values().find(|b| b.vni == vni && b.ip == ip.into());
    let endpoint = tables.agent.endpoints.iter().find(|(k, _)| k.vni == vni && k.ip == ip.into());
    match (backend, endpoint) {
        (Some(b), _) if b.node != Be32::ZERO && rng.random_bool(0.6) => b.node.into(),
        (_, Some((_, e))) if e.node != Be32::ZERO => e.node.into(),
        _ => any(rng, &[PEER, UNRESOLVED]),
    }
}

/// Sends to a group of the sender's network, mostly with the group's MAC.
fn to_group(rng: &mut SmallRng, from: Ipv4Addr, source: [u8; 6]) -> Vec<u8> {
    let [a, b, c, _] = from.octets();
    let subnet = Ipv4Addr::new(a, b, c, 255);
    let to = if rng.random_bool(0.3) { subnet } else { any(rng, &GROUPS) };
    let [first, high, middle, low] = to.octets();
    let group = match first {
        224..240 => [0x01, 0x00, 0x5e, high & 0x7f, middle, low],
        _ => [0xff; 6],
    };
    let unicast = mac(to).bytes();
    let destination = any(rng, &[group, group, group, group, unicast, [0xff; 6]]);
    let mut tuple = tuple(rng, from, to);
    // IGMP.
    tuple.proto = any(rng, &[tuple.proto, 17, 17, 17, 2]);
    ethernet((source, destination), &ipv4(rng, tuple))
}

fn ethernet((src, dst): ([u8; 6], [u8; 6]), ip: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &[0x08, 0x00], ip].concat()
}

fn arp(rng: &mut SmallRng, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = crate::rig::packets::arp_request(from, target);
    if rng.random_bool(0.1) {
        packet[28..32].fill(0);
    }
    packet
}

/// An IPv4 packet; some have options, are fragments or have a protocol that is not translated.
fn ipv4(rng: &mut SmallRng, tuple: Tuple) -> Vec<u8> {
    let length = any(rng, &[0, 1, 9, 64, 300, 1380, 1402, 1410, 1472]);
    let payload: Vec<u8> = (0..length).map(|i| i as u8 ^ 0x5a).collect();
    let mut body = match tuple.proto {
        6 => segment(rng, tuple, &payload),
        17 => datagram(tuple, &payload),
        1 => echo(rng, tuple, &payload),
        132 => sctp(rng, tuple, &payload),
        _ => payload,
    };
    if tuple.proto == 17 && rng.random_bool(0.2) {
        body[6..8].fill(0);
    }
    let options: &[u8] = if rng.random_bool(0.12) { &[1, 1, 1, 0] } else { &[] };
    let fragment = any(rng, &[0, 0x4000, 0x4000, 0x4000]);
    // A few ids, of few packets, so that later fragments meet their first one.
    let fragment =
        if rng.random_bool(0.1) { any(rng, &[0x2000, 0x2000, 0x2001, 185]) } else { fragment };
    header(rng, (tuple.src, tuple.dst, tuple.proto), &body, (options, fragment))
}

fn header(
    rng: &mut SmallRng,
    (src, dst, proto): (Ipv4Addr, Ipv4Addr, u8),
    body: &[u8],
    (options, fragment): (&[u8], u16),
) -> Vec<u8> {
    let length = 20 + options.len();
    let mut ip = vec![0x40 | (length / 4) as u8, any(rng, &[0, 0, 0, 0xb8, 1, 2, 3, 0xbb])];
    ip.extend(((length + body.len()) as u16).to_be_bytes());
    let id = if fragment & 0x3fff == 0 { rng.random() } else { any(rng, &[7, 7, 8]) };
    ip.extend(u16::to_be_bytes(id));
    ip.extend(fragment.to_be_bytes());
    ip.extend([any(rng, &[64, 64, 64, 64, 64, 64, 255, 2, 1, 0]), proto, 0, 0]);
    ip.extend(src.octets());
    ip.extend(dst.octets());
    ip.extend(options);
    let checksum = ones_complement(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip.extend(body);
    ip
}

/// Fills in the checksum at `at`, over the pseudo-header and the body.
fn seal(tuple: Tuple, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    let (src, dst) = (tuple.src.octets(), tuple.dst.octets());
    let sum = ones_complement(&[&src[..], &dst, &[0, tuple.proto], &length, &body].concat());
    // RFC 768: zero is sent as all ones; for TCP either is right only in this form.
    let sum = if sum == 0 && tuple.proto == 17 { 0xffff } else { sum };
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

fn segment(rng: &mut SmallRng, tuple: Tuple, payload: &[u8]) -> Vec<u8> {
    // SYN, SYN ACK, ACK, PSH ACK, FIN ACK, RST, all flags, no flags.
    let flags = any(rng, &[0x02, 0x02, 0x12, 0x10, 0x18, 0x18, 0x11, 0x04, 0xff, 0]);
    let mut body = [tuple.sport.to_be_bytes(), tuple.dport.to_be_bytes()].concat();
    body.extend([0, 0, 3, 0xe8, 0, 0, 0, 1, 0x50, flags, 0xfa, 0, 0, 0, 0, 0]);
    body.extend(payload);
    seal(tuple, body, 16)
}

fn datagram(tuple: Tuple, payload: &[u8]) -> Vec<u8> {
    let mut body = [tuple.sport.to_be_bytes(), tuple.dport.to_be_bytes()].concat();
    body.extend(((8 + payload.len()) as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    seal(tuple, body, 6)
}

/// A packet of one chunk: DATA, INIT, INIT ACK, ABORT, SHUTDOWN COMPLETE, COOKIE ACK (RFC 9260,
/// section 3). No node on the way checks its checksum.
fn sctp(rng: &mut SmallRng, tuple: Tuple, payload: &[u8]) -> Vec<u8> {
    let mut body = [tuple.sport.to_be_bytes(), tuple.dport.to_be_bytes()].concat();
    body.extend([0, 0, 0, 7, 0xc5, 0xc5, 0xc5, 0xc5]);
    body.extend([any(rng, &[0, 1, 1, 2, 6, 14, 11]), 0]);
    body.extend(((4 + payload.len()) as u16).to_be_bytes());
    body.extend(payload);
    body
}

/// The tuple of an echo has its identifier as source port in a request, as destination port in a
/// reply.
fn echo(rng: &mut SmallRng, tuple: Tuple, payload: &[u8]) -> Vec<u8> {
    let is_reply = tuple.sport == 0;
    let kind = if is_reply { any(rng, &[0, 0, 0, 8]) } else { any(rng, &[8, 8, 8, 0, 3]) };
    let [high, low] = (if is_reply { tuple.dport } else { tuple.sport }).to_be_bytes();
    let mut body = vec![kind, 0, 0, 0, high, low, 0, 1];
    body.extend(payload);
    let sum = ones_complement(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}
