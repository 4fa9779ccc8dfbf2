//! Published ports, as clients outside ask them.

use std::net::IpAddr;

use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{Backend, Endpoint, Published},
};

use super::{
    agent::Naming,
    balance::Balanced,
    bytes::{ETHERNET, Ethernet, ICMP, SCTP, TCP, UDP, bytes},
    dsr,
    host::MTU,
    icmp::{self, Router},
    packet::{Flow, Ip, Part},
    reject::reject,
    snat,
    state::{Action, Entry, Marks},
    tunnel::Way,
    walk::{End, Outcome, Walk},
};

/// The first bytes behind the header of an IPv4 packet without options. A later fragment has those
/// of its first fragment.
pub fn head(walk: &mut Walk<'_>, ip: &Ip) -> Option<[u8; 8]> {
    if ip.later {
        let key = walk.fragments_of(ip, UNDERLAY_VNI)?;
        return walk.first_fragment(&key).ok();
    }
    bytes(&walk.frame, ip.payload())
}

/// The destination port of a transport header with these first bytes.
pub fn dest(head: &[u8; 8]) -> u16 {
    u16::from_be_bytes([head[2], head[3]])
}

/// Handles a packet to an address of the host, if it is known as one. All other packets go to the
/// host.
pub fn to_host(walk: &mut Walk<'_>) -> Outcome {
    let ipv6 = Ethernet::at(&walk.frame, 0).ok().and_then(|ethernet| ethernet.is_ip());
    let Some(ip) = ipv6.and_then(|ipv6| Ip::at(&walk.frame, ETHERNET, ipv6)) else {
        return Ok(End::Pass);
    };
    if ip.is_ipv6() {
        return match find6(walk, &ip)? {
            Some((flow, published)) => to_published(walk, &ip, &flow, &published),
            None => Ok(End::Pass),
        };
    }
    if !ip.is_plain() {
        return Ok(End::Pass);
    }
    let Some(head) = head(walk, &ip) else { return Ok(End::Pass) };
    if let Some(outcome) = snat::receive(walk, &ip, &head) {
        return outcome;
    }
    if ip.protocol == ICMP {
        // "Errors about what a backend has sent to a client outside are the backend's."
        let Ok(Some(flow)) = walk.flow(&ip, UNDERLAY_VNI) else { return Ok(End::Pass) };
        if walk.find_action(&flow, Action::Forward).is_none() {
            return Ok(End::Pass);
        }
        ip.check(walk)?;
        return to_published(walk, &ip, &flow, &Published::default());
    }
    let published = walk.tables.published_at(ip.dst, ip.protocol, dest(&head));
    let is_one = [TCP, UDP, SCTP].contains(&ip.protocol);
    let Some(published) = published.filter(|_| is_one) else { return Ok(End::Pass) };
    ip.check(walk)?;
    let flow = walk.flow(&ip, UNDERLAY_VNI)?.ok_or(Reason::ConntrackFull)?;
    to_published(walk, &ip, &flow, &published)
}

/// The flow of an IPv6 packet to a published port, or of an error about one. A client gets an
/// address id only if the port is known, so faults of the packet count from there on.
fn find6(walk: &mut Walk<'_>, ip: &Ip) -> Result<Option<(Flow, Published)>, Reason> {
    if !walk.tables.is_local(ip.dst) {
        return Ok(None);
    }
    let Ok(said) = walk.said(ip) else { return Ok(None) };
    if said.part == Part::Whole {
        let published = walk.tables.published_at(ip.dst, said.proto, said.ports[1]);
        let Some(published) = published else { return Ok(None) };
        said.fault.map_or(Ok(()), Err)?;
        ip.check(walk)?;
        let how = Naming { may_be_new: true, ..Naming::default() };
        let flow = walk.named(&said, UNDERLAY_VNI, how)?.ok_or(Reason::ConntrackFull)?;
        return Ok(Some((flow, published)));
    }
    let Ok(Some(flow)) = walk.named(&said, UNDERLAY_VNI, Naming::default()) else {
        return Ok(None);
    };
    let published = match said.part {
        Part::Quoted => walk.find_action(&flow, Action::Forward).map(|_| Published::default()),
        _ => walk.tables.published_at(ip.dst, flow.key.proto, flow.key.dport),
    };
    let Some(published) = published else { return Ok(None) };
    ip.check(walk)?;
    Ok(Some((flow, published)))
}

/// Handles a packet from a client outside.
fn to_published(walk: &mut Walk<'_>, ip: &Ip, flow: &Flow, published: &Published) -> Outcome {
    let target = (published.target.get(), Marks::default());
    let (entry, backend) = match walk.balance(flow, published.service, target)? {
        Balanced::To(entry, backend) => (entry, backend),
        rejected => return reject(walk, ip, flow, &rejected),
    };
    if walk.tables.poses_as_inside(&backend, ip.src) {
        return Err(Reason::SpoofedInnerSource);
    }
    walk.keep_both(flow, &entry);
    walk.count_received(flow, &entry);
    walk.translate(flow, &entry)?;
    let source = walk.tables.gateway_mac(backend.vni).unwrap_or_default();
    if backend.node == Be32::ZERO {
        let endpoint =
            Endpoint { mac: backend.mac, counter: backend.counter, ..Endpoint::default() };
        return walk.deliver((&endpoint, source), ip.is_ipv6(), Reason::DeliveredLocal);
    }
    let asked = Ethernet::at(&walk.frame, 0)?.dst;
    match walk.tunnel(way(ip.dst, (flow, &entry), &backend, source)) {
        // The client is told by the frontend.
        Err(Reason::TooBig) => {
            walk.undo(flow, &entry)?;
            let mtu = MTU - walk.tunnel_length();
            icmp::too_big(walk, Router { ip: ip.dst, mac: asked }, mtu)
        }
        sent => sent,
    }
}

/// The path to a backend on another node, which learns the frontend.
pub fn way(
    frontend: IpAddr,
    (flow, entry): (&Flow, &Entry),
    backend: &Backend,
    source: Mac,
) -> Way {
    let inner = Ethernet::of_ip(source, backend.mac, frontend.is_ipv6());
    let inner = dsr::header(flow, entry, frontend, inner);
    Way { vni: backend.vni, node: backend.node.into(), inner }
}

impl Walk<'_> {
    /// Keeps the address ids of both ends of a flow as long as the flow.
    pub fn keep_both(&mut self, flow: &Flow, entry: &Entry) {
        if entry.action == Action::Forward && entry.marks.any(Marks::ANSWERED) {
            self.tables.keep(flow.key.src);
            self.tables.keep(flow.key.dst);
        }
    }
}
