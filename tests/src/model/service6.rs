//! IPv6 to VIPs, as backends and to them, and through published ports.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be32, Ip6, Mac, Reason, UNDERLAY_VNI,
    maps::{
        Backend, CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_REVERSE, Conntrack, ConntrackKey,
        ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, ENDPOINT_LOCAL, Endpoint, EndpointKey,
        Link, Link6, NETWORK_INTERNAL, PUBLISHED_IPV6, Published, STALE_RESETS, VIA_VIP,
        VNI_FLAG_IPV6,
    },
};

use super::{
    balance::{Balanced, reset_of},
    conntrack::{Flow, Part},
    direct_return,
    flow6::{Naming, Said},
    frame::{ETHERNET, Ethernet, IPV6, SCTP, TCP, bytes, ones_complement, put},
    host::MTU,
    ipv6::{Header, ICMPV6, refused_aggregate},
    underlay::{check_backend, check_peer},
    walk::{End, Outcome, Walk},
};

/// A container's packet that was checked.
pub struct Sent {
    /// Its interface.
    pub link: Link,
    /// The same of IPv6.
    pub own: Link6,
    /// Its Ethernet header.
    pub ethernet: Ethernet,
    /// Its header.
    pub ip: Header,
}

/// Who answers.
struct Router {
    ip: Ipv6Addr,
    mac: Mac,
}

/// "A connection that was given its backend at once, and has outlived it, is told as its service says": its packets
/// have the backend's MAC.
pub fn to_nobody_here(walk: &mut Walk<'_>, sent: &Sent) -> Outcome {
    let [_, _, a, b, c, d] = sent.ethernet.dst.bytes();
    let key = EndpointKey { vni: sent.link.vni, ip: Be32::from_octets([a, b, c, d]) };
    let flags = walk.tables.agent.stale_backends.get(&key).copied().filter(|_| sent.ip.next == TCP);
    let flags = flags.ok_or(Reason::NoEndpoint)?;
    if flags & STALE_RESETS == 0 {
        return Err(Reason::BackendGone);
    }
    let flow = walk.said(&sent.ip).map_err(|_| Reason::BackendGone)?.nameless();
    refuse(walk, &sent.ip, &flow, &Balanced::Lost)
}

/// To a VIP.
pub fn to_vip(walk: &mut Walk<'_>, sent: &Sent, service: u32) -> Outcome {
    let flow = walk.flow6(&sent.ip, sent.link.vni)?.ok_or(Reason::ServiceProtocol)?;
    let is_backend = sent.link.flags & u16::from(ENDPOINT_FLAG_BACKEND) != 0;
    if is_backend && let Some(entry) = walk.find_action(&flow, CONNTRACK_REPLY) {
        return reply(walk, sent, &flow, &entry);
    }
    match walk.balance(&flow, service, (flow.key.dport, VIA_VIP))? {
        Balanced::To(entry, backend) => to_backend(walk, sent, &flow, (&entry, &backend)),
        refused => refuse(walk, &sent.ip, &flow, &refused),
    }
}

/// To an endpoint, where one of both is a backend. `None` when nothing is translated.
pub fn to_endpoint(
    walk: &mut Walk<'_>,
    sent: &Sent,
    endpoint: &Endpoint,
) -> Result<Option<End>, Reason> {
    let Ok(Some(flow)) = walk.flow6(&sent.ip, sent.link.vni) else { return Ok(None) };
    let entry = match walk.find(&flow) {
        Some(entry) if entry.action == CONNTRACK_REPLY => {
            return reply(walk, sent, &flow, &entry).map(Some);
        }
        Some(entry) if entry.action == CONNTRACK_FORWARD => entry,
        _ => match walk.open_direct(&flow)? {
            Some(entry) => entry,
            None => return Ok(None),
        },
    };
    walk.translate6(&flow, flow.transport, &entry)?;
    if endpoint.kind == ENDPOINT_LOCAL {
        let from = sent.ethernet.src;
        return walk.deliver_as(IPV6, endpoint, from, Reason::DeliveredLocal).map(Some);
    }
    let to = (sent.link.vni, endpoint.node, endpoint.mac);
    tunnel(walk, sent, to, Some((&flow, &entry))).map(Some)
}

/// To nobody of the network.
pub fn to_outside(walk: &mut Walk<'_>, sent: &Sent) -> Outcome {
    let Sent { link, ip, .. } = sent;
    let network = walk.network(link.vni).ok_or(Reason::NoEndpoint)?;
    let said = walk.said(ip).map_err(|_| Reason::NoWayOut)?;
    if network.flags & NETWORK_INTERNAL == 0
        && let Some((flow, published)) = own_port(walk, sent, &said)?
    {
        return to_own_port(walk, sent, &flow, &published);
    }
    let flow = walk.named(&said, link.vni, Naming::default())?.ok_or(Reason::NoWayOut)?;
    match walk.find(&flow) {
        Some(entry) if entry.action == CONNTRACK_REPLY => reply(walk, sent, &flow, &entry),
        Some(entry) if entry.action == CONNTRACK_REVERSE => {
            if direct_return::is_straight(&flow, &entry) {
                match straight(walk, sent, &flow, &entry) {
                    // "Through the node that was asked where there is no way from here."
                    Err(Reason::NoRoute) => {}
                    sent => return sent,
                }
            }
            let translated = entry.dport != flow.key.dport;
            if translated {
                walk.translate6(&flow, flow.transport, &entry)?;
            }
            let to = (link.vni, entry.node, Mac::of_ip(network.gateway));
            tunnel(walk, sent, to, translated.then_some((&flow, &entry)))
        }
        _ => Err(Reason::NoWayOut),
    }
}

/// Sends a reply straight to its client, if there is a way.
fn straight(walk: &mut Walk<'_>, sent: &Sent, flow: &Flow, entry: &Conntrack) -> Outcome {
    walk.address6(entry.vni, entry.saddr).ok_or(Reason::NoRoute)?;
    match walk.route_out6(sent.ip.dst) {
        Err(Reason::TooBig) => return tell(walk, sent, MTU, None),
        sent => sent?,
    };
    walk.translate6(flow, flow.transport, entry)?;
    Ok(End::Sent(Reason::SentDsr))
}

/// What this host publishes under the port that a container asks of it, and the flow: under the container's
/// number on the service's network if it is on that, otherwise as somebody outside.
fn own_port(
    walk: &mut Walk<'_>,
    sent: &Sent,
    said: &Said,
) -> Result<Option<(Flow, Published)>, Reason> {
    let vni = sent.link.vni;
    if !is_here(walk, sent.ip.dst) {
        return Ok(None);
    }
    let outside = Naming { source_outside: true, may_be_new: false };
    let (mut proto, mut port) = (said.proto, said.ports[1]);
    match said.part {
        Part::Quoted => {
            for how in [Naming::default(), outside] {
                let flow = walk.named(said, vni, how)?;
                if let Some(flow) = flow
                    && walk.find_action(&flow, CONNTRACK_FORWARD).is_some()
                {
                    return Ok(Some((flow, Published::default())));
                }
            }
            return Ok(None);
        }
        Part::Later => {
            let flow = match walk.named(said, vni, Naming::default()) {
                Ok(None) | Err(Reason::Fragment) => walk.named(said, vni, outside)?,
                flow => flow?,
            };
            let Some(flow) = flow else { return Ok(None) };
            (proto, port) = (flow.key.proto, flow.key.dport);
        }
        Part::Whole => {}
    }
    let Some(published) = published_here(walk, sent.ip.dst, proto, port) else { return Ok(None) };
    let service = walk.tables.agent.services.get(&published.service);
    let source_outside = service.is_none_or(|service| service.vni != vni);
    let flow = walk.named(said, vni, Naming { source_outside, may_be_new: true })?;
    Ok(flow.map(|flow| (flow, published)))
}

fn to_own_port(walk: &mut Walk<'_>, sent: &Sent, flow: &Flow, published: &Published) -> Outcome {
    match walk.balance(flow, published.service, (published.target, 0))? {
        Balanced::To(entry, backend) => {
            let is_inside = walk.inside6(backend.vni, sent.ip.src).is_some();
            if backend.vni != sent.link.vni && is_inside {
                return Err(Reason::SpoofedInnerSource);
            }
            walk.keep_both6(flow, &entry);
            to_backend(walk, sent, flow, (&entry, &backend))
        }
        refused => refuse(walk, &sent.ip, flow, &refused),
    }
}

fn to_backend(
    walk: &mut Walk<'_>,
    sent: &Sent,
    flow: &Flow,
    (entry, backend): (&Conntrack, &Backend),
) -> Outcome {
    walk.count_asked(flow, entry);
    walk.translate6(flow, flow.transport, entry)?;
    if backend.node == Be32::ZERO {
        return deliver_backend(walk, backend, sent.ethernet.src);
    }
    tunnel(walk, sent, (backend.vni, backend.node, backend.mac), Some((flow, entry)))
}

fn deliver_backend(walk: &mut Walk<'_>, backend: &Backend, source: Mac) -> Outcome {
    let endpoint = Endpoint { mac: backend.mac, slot: backend.slot, ..Endpoint::default() };
    walk.deliver_as(IPV6, &endpoint, source, Reason::DeliveredLocal)
}

/// Into the tunnel; the container is told what fits, of its packet as it sent it.
fn tunnel(
    walk: &mut Walk<'_>,
    sent: &Sent,
    (vni, node, to): (u32, Be32, Mac),
    translated: Option<(&Flow, &Conntrack)>,
) -> Outcome {
    let inner = Ethernet { dst: to, ..sent.ethernet };
    match walk.tunnel(vni, node.into(), inner) {
        Err(Reason::TooBig) => tell(walk, sent, MTU - walk.tunnel_length(), translated),
        sent => sent,
    }
}

fn tell(
    walk: &mut Walk<'_>,
    sent: &Sent,
    mtu: usize,
    translated: Option<(&Flow, &Conntrack)>,
) -> Outcome {
    if let Some((flow, entry)) = translated {
        walk.undo6(flow, flow.transport, entry)?;
    }
    let mac = Mac::of_ip(walk.network(sent.link.vni).ok_or(Reason::TooBig)?.gateway);
    let router = Router { ip: sent.own.gateway.into(), mac };
    too_big(walk, &router, mtu)
}

/// A backend's reply goes to the client of its flow.
fn reply(walk: &mut Walk<'_>, sent: &Sent, flow: &Flow, entry: &Conntrack) -> Outcome {
    walk.count_answered(flow, entry, walk.frame.len());
    let [_, to] = walk.translate6(flow, flow.transport, entry)?;
    if entry.vni & !VNI_FLAG_IPV6 == UNDERLAY_VNI {
        return match walk.route_out6(to) {
            Err(Reason::TooBig) => tell(walk, sent, MTU, Some((flow, entry))),
            sent => sent,
        };
    }
    to_client(walk, entry, to, Reason::DeliveredLocal)
}

fn to_client(walk: &mut Walk<'_>, entry: &Conntrack, to: Ipv6Addr, reason: Reason) -> Outcome {
    let client = walk.endpoint6(entry.vni & !VNI_FLAG_IPV6, to);
    let client = client.filter(|e| e.kind == ENDPOINT_LOCAL).ok_or(Reason::NoEndpoint)?;
    walk.deliver_as(IPV6, &client, Mac::of_ip(entry.saddr), reason)
}

impl Walk<'_> {
    fn route_out6(&mut self, to: Ipv6Addr) -> Outcome {
        let total = self.longest();
        let hop = self.host.next_hop6(&self.tables.config, Some(to), total)?;
        let (src, dst) = hop.macs;
        put(&mut self.frame, 0, &Ethernet { src, dst, kind: IPV6 }.bytes());
        Ok(End::Sent(Reason::SentToClient))
    }
}

fn is_here(walk: &Walk<'_>, ip: Ipv6Addr) -> bool {
    walk.tables.agent.local_addrs6.contains_key(&ip.into())
}

/// "A port answers on the host's IPv6 addresses too where its backends have IPv6."
pub fn published_here(
    walk: &Walk<'_>,
    ip: Ipv6Addr,
    proto: u8,
    port: overlay_common::Be16,
) -> Option<Published> {
    let published = walk.published(proto, port).filter(|_| is_here(walk, ip));
    published.filter(|published| published.flags & PUBLISHED_IPV6 != 0)
}

/// To an address of the host, as far as can be told.
pub fn to_host(walk: &mut Walk<'_>) -> Outcome {
    let Some(ip) = Header::unchecked(walk, ETHERNET).filter(|ip| is_here(walk, ip.dst)) else {
        return Ok(End::Pass);
    };
    match walk.said_of(&ip) {
        Ok(said) if said.part != Part::Whole => {
            let Ok(Some(flow)) = walk.named(&said, UNDERLAY_VNI, Naming::default()) else {
                return Ok(End::Pass);
            };
            if said.part == Part::Quoted {
                return match walk.find_action(&flow, CONNTRACK_FORWARD) {
                    Some(_) => {
                        ip.check(walk)?;
                        to_published(walk, &ip, &flow, &Published::default())
                    }
                    None => Ok(End::Pass),
                };
            }
            match published_here(walk, ip.dst, flow.key.proto, flow.key.dport) {
                Some(published) => {
                    ip.check(walk)?;
                    to_published(walk, &ip, &flow, &published)
                }
                None => Ok(End::Pass),
            }
        }
        said => {
            let asked = match &said {
                Ok(said) => Some((said.proto, said.ports[1])),
                Err((_, asked)) => *asked,
            };
            let published =
                asked.and_then(|(proto, port)| published_here(walk, ip.dst, proto, port));
            let Some(published) = published else { return Ok(End::Pass) };
            let said = said.map_err(|(reason, _)| reason)?;
            ip.check(walk)?;
            let how = Naming { may_be_new: true, ..Naming::default() };
            let flow = walk.named(&said, UNDERLAY_VNI, how)?.ok_or(Reason::ConntrackFull)?;
            to_published(walk, &ip, &flow, &published)
        }
    }
}

/// From a client outside.
fn to_published(walk: &mut Walk<'_>, ip: &Header, flow: &Flow, published: &Published) -> Outcome {
    let balanced = walk.balance(flow, published.service, (published.target, 0))?;
    let Balanced::To(entry, backend) = balanced else {
        return refuse(walk, ip, flow, &balanced);
    };
    if poses_as_inside(walk, &backend, ip.src) {
        return Err(Reason::SpoofedInnerSource);
    }
    let source = walk.network(backend.vni).map_or(Mac::default(), |n| Mac::of_ip(n.gateway));
    walk.keep_both6(flow, &entry);
    walk.count_asked(flow, &entry);
    walk.translate6(flow, flow.transport, &entry)?;
    if backend.node == Be32::ZERO {
        return deliver_backend(walk, &backend, source);
    }
    let asked = Ethernet::at(&walk.frame, 0)?.dst;
    let inner = Ethernet { dst: backend.mac, src: source, kind: IPV6 };
    let inner = direct_return::header6(flow, &entry, ip.dst, inner);
    match walk.tunnel(backend.vni, backend.node.into(), inner) {
        Err(Reason::TooBig) => {
            walk.undo6(flow, flow.transport, &entry)?;
            let mtu = MTU - walk.tunnel_length();
            too_big(walk, &Router { ip: ip.dst, mac: asked }, mtu)
        }
        sent => sent,
    }
}

/// "A client cannot pose as a container of the backend's network."
pub fn poses_as_inside(walk: &Walk<'_>, backend: &Backend, client: Ipv6Addr) -> bool {
    let link = walk.tables.agent.links6.get(&backend.ifindex);
    link.is_some_and(|link| is_in_subnet(link, client))
        || walk.inside6(backend.vni, client).is_some()
}

fn is_in_subnet(link: &Link6, ip: Ipv6Addr) -> bool {
    let bits = |ip: Ip6| Ipv6Addr::from(ip).to_bits();
    let mask = bits(link.mask);
    ip.to_bits() & mask == bits(link.ip) & mask
}

/// Out of the tunnel, from a backend to a client of this node or on its own behalf.
pub fn from_backend(
    walk: &mut Walk<'_>,
    (vni, ip): (u32, &Header),
    (endpoint, from): (&Endpoint, Mac),
) -> Outcome {
    if let Ok(Some(flow)) = walk.flow6(ip, vni)
        && let Some(entry) = walk.find_action(&flow, CONNTRACK_REPLY)
    {
        return reply_from_tunnel(walk, vni, &flow, &entry);
    }
    pop(walk, ip, false)?;
    walk.deliver_as(IPV6, endpoint, from, Reason::Decapsulated)
}

/// Out of the tunnel, from a client outside whose packet another node has translated.
pub fn from_outside(
    walk: &mut Walk<'_>,
    (vni, sender): (u32, Ipv4Addr),
    ip: &Header,
    endpoint: &Endpoint,
) -> Outcome {
    check_peer(walk, sender)?;
    let network = walk.network(vni).ok_or(Reason::NoEndpoint)?;
    let link = walk.tables.agent.links6.get(&endpoint.ifindex).ok_or(Reason::NoEndpoint)?;
    if is_in_subnet(link, ip.src) {
        return Err(Reason::SpoofedInnerSource);
    }
    if endpoint.flags & ENDPOINT_FLAG_PUBLISHED == 0 {
        return Err(Reason::NotPublished);
    }
    let said = walk.said(ip)?;
    let how = Naming { may_be_new: true, ..Naming::default() };
    let flow = walk.named(&said, vni, how)?.ok_or(Reason::ConntrackFull)?;
    let tunnel = walk.tunnel_length();
    let asked = direct_return::frontends6(walk, &Ethernet::at(&walk.frame, tunnel)?, sender);
    let believed = direct_return::believed6(walk.tables, &flow, said.ends[0], asked);
    let sport = walk.note_return(&flow, sender, (asked, believed))?;
    if let Some(entry) = walk.returning_kept(&flow, sport) {
        walk.keep6(flow.key.saddr);
        // "And the address that was asked", where it is one outside.
        if entry.saddr.octets()[0] >= 240 {
            walk.keep6(entry.saddr);
        }
    }
    pop(walk, ip, false)?;
    if sport != flow.key.sport {
        let ConntrackKey { saddr, daddr, dport, vni, .. } = flow.key;
        let action = CONNTRACK_FORWARD;
        let entry = Conntrack { saddr, daddr, sport, dport, vni, action, ..Conntrack::default() };
        walk.translate6(&flow, flow.transport - tunnel, &entry)?;
    }
    walk.deliver_as(IPV6, endpoint, Mac::of_ip(network.gateway), Reason::Decapsulated)
}

/// Out of the tunnel, to nobody here: the reply of a flow that was translated here, or nothing.
pub fn to_nobody(walk: &mut Walk<'_>, (vni, sender): (u32, Ipv4Addr), ip: &Header) -> Outcome {
    check_peer(walk, sender)?;
    let flow = walk.flow6(ip, vni).ok().flatten().ok_or(Reason::NoEndpoint)?;
    let entry = walk.find_action(&flow, CONNTRACK_REPLY).ok_or(Reason::NoEndpoint)?;
    check_backend(walk, &entry, sender)?;
    reply_from_tunnel(walk, vni, &flow, &entry)
}

fn reply_from_tunnel(walk: &mut Walk<'_>, vni: u32, flow: &Flow, entry: &Conntrack) -> Outcome {
    let leaves = entry.vni & !VNI_FLAG_IPV6 == UNDERLAY_VNI;
    let tunnel = walk.tunnel_length();
    let ip = Header::at(walk, tunnel + ETHERNET)?;
    pop(walk, &ip, leaves)?;
    let transport = flow.transport - tunnel;
    walk.count_answered(flow, entry, walk.frame.len());
    let [from, to] = walk.translate6(flow, transport, entry)?;
    if !leaves {
        return to_client(walk, entry, to, Reason::Decapsulated);
    }
    match walk.route_out6(to) {
        Err(Reason::TooBig) => {
            let backend = walk.tables.agent.backends.get(&entry.backend);
            let backend = *backend.ok_or(Reason::BackendGone)?;
            walk.undo6(flow, transport, entry)?;
            too_big(walk, &Router { ip: from, mac: Mac::default() }, MTU)?;
            walk.segment = 0;
            let inner = Ethernet { dst: backend.mac, src: Mac::default(), kind: IPV6 };
            walk.tunnel(vni, backend.node.into(), inner)?;
            Ok(End::Sent(Reason::TooBigAnswered))
        }
        sent => sent,
    }
}

/// Takes the outer headers away, as `ipv6` does between endpoints.
pub fn pop(walk: &mut Walk<'_>, ip: &Header, leaves: bool) -> Result<(), Reason> {
    refused_aggregate(walk, ip.next, leaves)?;
    walk.pop()
}

/// "Packet too big" that fills 1280 bytes (RFC 4443, section 3.2): to no ICMPv6 error (section 2.4 e).
fn too_big(walk: &mut Walk<'_>, router: &Router, mtu: usize) -> Outcome {
    if walk.frame[ETHERNET + 6] == ICMPV6 && walk.frame[ETHERNET + 40] < 128 {
        return Err(Reason::TooBig);
    }
    let quote: [u8; 1232] = bytes(&walk.frame, ETHERNET).ok_or(Reason::TooBig)?;
    answer(walk, router, ([2, 0], mtu as u32), &quote)?;
    Ok(End::Sent(Reason::TooBigAnswered))
}

fn answer(
    walk: &mut Walk<'_>,
    router: &Router,
    (kind, value): ([u8; 2], u32),
    quote: &[u8],
) -> Result<(), Reason> {
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    let to: [u8; 16] = bytes(&walk.frame, ETHERNET + 8).ok_or(Reason::Truncated)?;
    let mut message = [&kind[..], &[0, 0], &value.to_be_bytes(), quote].concat();
    let addresses = [router.ip.octets(), to].concat();
    let length = (message.len() as u16).to_be_bytes();
    let pseudo = [&addresses[..], &[0, 0], &length, &[0, 0, 0, ICMPV6], &message].concat();
    put(&mut message, 2, &ones_complement(&pseudo).to_be_bytes());
    let back = Ethernet { dst: ethernet.src, src: router.mac, kind: IPV6 };
    let header = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 64], &addresses].concat();
    walk.frame = [&back.bytes()[..], &header, &message].concat();
    Ok(())
}

/// "Refused at once": TCP gets a reset, UDP "port unreachable", SCTP "unrecognized next header".
fn refuse(walk: &mut Walk<'_>, ip: &Header, flow: &Flow, balanced: &Balanced) -> Outcome {
    if matches!(balanced, Balanced::Lost) {
        let told = flow.key.proto == TCP && refuse_new(walk, ip, flow).is_ok();
        let gone = End::Sent(Reason::BackendGoneAnswered);
        return if told { Ok(gone) } else { Err(Reason::BackendGone) };
    }
    refuse_new(walk, ip, flow)
}

fn refuse_new(walk: &mut Walk<'_>, ip: &Header, flow: &Flow) -> Outcome {
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    let is_one = !ip.src.is_multicast() && !ip.src.is_unspecified();
    if ethernet.dst.is_group() || !is_one || flow.part == Part::Later {
        return Err(Reason::NoBackend);
    }
    if flow.key.proto == TCP {
        return reset(walk, ip, flow, ethernet);
    }
    let whole = walk.frame.get(ETHERNET..ETHERNET + 128);
    let quote = whole.or_else(|| walk.frame.get(ETHERNET..ETHERNET + 48));
    let quote = quote.ok_or(Reason::Truncated)?.to_vec();
    let told = if flow.key.proto == SCTP { ([4, 1], 6) } else { ([1, 4], 0) };
    answer(walk, &Router { ip: ip.dst, mac: ethernet.dst }, told, &quote)?;
    Ok(End::Sent(Reason::NoBackendAnswered))
}

/// RFC 9293, section 3.10.7.1.
fn reset(walk: &mut Walk<'_>, ip: &Header, flow: &Flow, ethernet: Ethernet) -> Outcome {
    if flow.transport != ETHERNET + 40 {
        return Err(Reason::NoBackend);
    }
    let segment: [u8; 20] = bytes(&walk.frame, flow.transport).ok_or(Reason::Truncated)?;
    let mut tcp = reset_of(&segment, ip.payload)?;
    let addresses = [ip.dst.octets(), ip.src.octets()].concat();
    let pseudo = [&addresses[..], &[0, 0, 0, 20, 0, 0, 0, TCP], &tcp].concat();
    put(&mut tcp, 16, &ones_complement(&pseudo).to_be_bytes());
    let back = Ethernet { dst: ethernet.src, src: ethernet.dst, kind: IPV6 };
    let header = [&[0x60, 0, 0, 0, 0, 20, TCP, 64][..], &addresses].concat();
    walk.frame = [&back.bytes()[..], &header, &tcp].concat();
    Ok(End::Sent(Reason::NoBackendAnswered))
}
