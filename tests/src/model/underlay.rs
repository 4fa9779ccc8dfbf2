//! `from_underlay` and `from_outside`: packets that the NIC and other interfaces receive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be32, Ip6, Mac, Reason, UNDERLAY_VNI,
    maps::{
        ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint,
    },
};

use super::{
    agent::{Naming, has_subnet, is_of},
    bytes::{ETHERNET, Ethernet, IPV4, IPV6, UDP, VLAN, bytes, half},
    dsr,
    host::MTU,
    icmp::{self, Router},
    observe::Party,
    packet::{Flow, Ip, behind},
    published::{dest, head, to_host},
    replication,
    state::{Action, Entry, FlowKey},
    tunnel::Way,
    walk::{End, Outcome, Walk},
};

/// A tunnel packet, by its outer headers.
#[derive(Clone, Copy)]
pub struct Tunneled {
    /// The node that has sent it.
    pub sender: Ipv4Addr,
    /// The outer ECN field.
    pub ecn: u8,
}

/// The outer headers of a packet of this node's tunnel.
pub fn tunneled(walk: &mut Walk<'_>) -> Result<Option<Tunneled>, Reason> {
    let config = walk.tables.config;
    let ipv6 = walk.tables.ipv6;
    let kind = if ipv6 { IPV6 } else { IPV4 };
    if !Ethernet::at(&walk.frame, 0).is_ok_and(|ethernet| ethernet.kind == kind) {
        return Ok(None);
    }
    let ip = match Ip::at(&walk.frame, ETHERNET, ipv6) {
        None if ipv6 => return Err(Reason::Truncated),
        None => return Ok(None),
        Some(ip) => ip,
    };
    let to_here = ip.dst == own_vtep(walk) && ip.protocol == UDP;
    if !to_here || !ip.is_plain() || ip.is_fragment() {
        return Ok(None);
    }
    let port = head(walk, &ip).map(|head| dest(&head));
    if port != Some(config.vxlan_port.get()) {
        return Ok(None);
    }
    let sender = match ip.src {
        IpAddr::V4(ip) => ip,
        // "A tunnel packet comes from a node if its source is the address under the source's
        // number."
        IpAddr::V6(ip) => {
            let mut vteps = walk.tables.agent.vteps6.iter();
            let of_source = vteps.find(|(_, vtep)| **vtep == Ip6::from(ip));
            Ipv4Addr::from(*of_source.ok_or(Reason::NotPeer)?.0)
        }
    };
    Ok(Some(Tunneled { sender, ecn: ip.ecn }))
}

fn own_vtep(walk: &Walk<'_>) -> IpAddr {
    let config = &walk.tables.config;
    match walk.tables.ipv6 {
        true => Ipv6Addr::from(config.vtep6).into(),
        false => Ipv4Addr::from(config.vtep).into(),
    }
}

/// A packet that came in by the NIC.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    let Some(tunneled) = tunneled(walk)? else { return to_host(walk) };
    let sender = tunneled.sender;
    check_other(walk, sender)?;
    let outcome = accept(walk, tunneled);
    // "A node is one of the cluster if it is in `peers`, or if the packet's inner source is on it."
    // Packets of all other senders are dropped for that reason, even if they have other faults.
    if !walk.tables.ipv6 && !matches!(outcome, Ok(End::Sent(_) | End::Copied(_))) {
        check_stranger(walk, sender)?;
    }
    match outcome {
        Err(Reason::TunnelRefused) => walk.kernel_decap(),
        outcome => outcome.map_err(|reason| classify(walk, sender, reason)),
    }
}

/// A packet that arrived on another interface: "it accepts no tunnel packets", nor those that only
/// the kernel's device would understand.
pub fn receive_egress(walk: &mut Walk<'_>) -> Outcome {
    if is_to_vtep(walk) { Err(Reason::NotPeer) } else { to_host(walk) }
}

/// Whether the packet is a tunnel packet to this node or its first fragment. Options and extension
/// headers are skipped.
fn is_to_vtep(walk: &Walk<'_>) -> bool {
    let ipv6 = walk.tables.ipv6;
    let is_kind = half(&walk.frame, 12) == Some(if ipv6 { IPV6 } else { IPV4 });
    let Some(ip) = Ip::at(&walk.frame, ETHERNET, ipv6).filter(|_| is_kind) else { return false };
    let to_here = ip.dst == own_vtep(walk) || (!ipv6 && walk.tables.is_local(ip.dst));
    if !to_here || ip.later {
        return false;
    }
    let port = walk.tables.config.vxlan_port.get();
    let (mut next, mut at) = (ip.protocol, ip.payload());
    for _ in 0..8 {
        if next == UDP {
            return bytes::<8>(&walk.frame, at).is_some_and(|head| dest(&head) == port);
        }
        let first = half(&walk.frame, at + 2).is_some_and(|offset| offset < 8);
        (next, at) = match behind(&walk.frame, next, at) {
            _ if !ipv6 => return false,
            Some(Ok(following)) => following,
            None if next == 44 && first => match bytes(&walk.frame, at) {
                Some([following]) => (following, at + 8),
                None => return false,
            },
            _ => return false,
        };
    }
    true
}

/// "The receiver accepts VXLAN from nodes of the cluster only."
pub fn check_peer(walk: &Walk<'_>, sender: Ipv4Addr) -> Result<(), Reason> {
    let is_peer = walk.tables.is_peer(UNDERLAY_VNI, sender);
    if is_peer { check_other(walk, sender) } else { Err(Reason::NotPeer) }
}

/// "A node hears nothing from itself."
pub fn check_other(walk: &Walk<'_>, sender: Ipv4Addr) -> Result<(), Reason> {
    let is_other = !sender.is_unspecified() && Be32::from(sender) != walk.tables.config.vtep;
    if is_other { Ok(()) } else { Err(Reason::NotPeer) }
}

/// Like [`check_peer`], but a sender that is no node of the cluster counts for no endpoint.
pub fn check_stranger(walk: &mut Walk<'_>, sender: Ipv4Addr) -> Result<(), Reason> {
    let checked = check_peer(walk, sender);
    if checked.is_err() {
        walk.party = Party::none();
    }
    checked
}

/// The fault of a sender that must be a node of the packet's network: "the nodes with endpoints of
/// a network send on it".
pub fn wrong_node(walk: &Walk<'_>, sender: Ipv4Addr) -> Option<Reason> {
    let vni = walk.party.vni;
    if walk.tables.network(vni).is_none() {
        Some(Reason::UnknownVni)
    } else if !walk.tables.is_peer(vni, sender) {
        Some(Reason::NotPeer)
    } else {
        None
    }
}

/// The reason for which a packet from a node of the cluster is dropped. A node without part in the
/// network gets that as its reason, except for faults that packets from any node can have: "any
/// node of the cluster sends what clients outside have sent to its published ports, and the replies
/// of flows that were translated here".
pub fn classify(walk: &Walk<'_>, sender: Ipv4Addr, reason: Reason) -> Reason {
    let others_too = match reason {
        // The packet comes from no node of the cluster, or has no network.
        Reason::NotPeer | Reason::InvalidVni | Reason::UnknownVni => true,
        // Routers set the ECN field.
        Reason::EcnUnexpected => true,
        // Clients' packets.
        Reason::NotPublished | Reason::TupleTaken => true,
        Reason::Fragment | Reason::UnrelatedError => true,
        // Replies to clients.
        Reason::BackendGone | Reason::NoRoute | Reason::TooBig | Reason::RewriteRefused => true,
        _ => walk.party.vni == UNDERLAY_VNI,
    };
    if others_too { reason } else { wrong_node(walk, sender).unwrap_or(reason) }
}

fn accept(walk: &mut Walk<'_>, Tunneled { sender, ecn }: Tunneled) -> Outcome {
    let vni = walk.vni()?;
    walk.party.vni = vni;
    let ethernet = walk.inner()?;
    if ethernet.kind == VLAN {
        return Err(Reason::TunnelRefused);
    }
    let ipv6 = ethernet.is_ip().ok_or(Reason::UnsupportedProtocol)?;
    let ip = Ip::at(&walk.frame, walk.tunnel_length() + ETHERNET, ipv6).ok_or(Reason::Truncated)?;
    ip.check(walk)?;
    walk.combine(ecn, &ip)?;
    let from = From { vni, sender };
    let endpoint = walk.tables.endpoint(vni, ip.dst);
    match endpoint.filter(|endpoint| endpoint.kind == ENDPOINT_LOCAL) {
        Some(endpoint) => {
            walk.party.counter = endpoint.counter;
            to_local(walk, from, &ip, &endpoint)
        }
        None if !ipv6 && ethernet.dst.is_group() => {
            replication::receive(walk, (vni, sender), ethernet.dst, &ip)
        }
        None if ipv6 && (endpoint.is_some() || is_of_link(ip.dst)) => Err(Reason::NoEndpoint),
        None => to_client(walk, from, &ip),
    }
}

/// Whether an IPv6 address is valid on its own link only.
pub fn is_of_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast())
}

/// The origin of a tunnel packet.
#[derive(Clone, Copy)]
struct From {
    vni: u32,
    sender: Ipv4Addr,
}

/// Handles a packet to an endpoint of this node.
fn to_local(walk: &mut Walk<'_>, from: From, ip: &Ip, endpoint: &Endpoint) -> Outcome {
    let is_link_local = matches!(ip.src, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let source = match walk.tables.endpoint(from.vni, ip.src) {
        // "An inner source only from the node it is on."
        Some(e) if e.kind == ENDPOINT_REMOTE && e.node == Be32::from(from.sender) => e,
        None if !is_link_local => return from_client(walk, from, ip, endpoint),
        _ => return Err(Reason::SpoofedInnerSource),
    };
    if source.flags & ENDPOINT_FLAG_BACKEND != 0
        && !is_link_local
        && let Ok(Some(flow)) = walk.flow(ip, from.vni)
        && let Some(entry) = walk.find_action(&flow, Action::Reply)
    {
        return reply(walk, ip, &flow, &entry);
    }
    walk.pop(ip, false)?;
    walk.deliver((endpoint, source.mac), ip.is_ipv6(), Reason::Decapsulated)
}

/// Handles a packet from a client outside that another node has translated: "only for endpoints
/// that serve a published port".
fn from_client(walk: &mut Walk<'_>, from: From, ip: &Ip, endpoint: &Endpoint) -> Outcome {
    check_peer(walk, from.sender)?;
    let network = walk.tables.network(from.vni).ok_or(Reason::NoEndpoint)?;
    let is_inside = match ip.src {
        IpAddr::V4(ip) => is_of(&network, ip),
        IpAddr::V6(ip) => {
            let link = walk.tables.link6(endpoint.ifindex).ok_or(Reason::NoEndpoint)?;
            has_subnet(&link, ip)
        }
    };
    if is_inside {
        return Err(Reason::SpoofedInnerSource);
    }
    if endpoint.flags & ENDPOINT_FLAG_PUBLISHED == 0 {
        return Err(Reason::NotPublished);
    }
    let said = walk.said(ip)?;
    let how = Naming { may_be_new: true, ..Naming::default() };
    let flow = walk.named(&said, from.vni, how)?.ok_or(Reason::ConntrackFull)?;
    let inner = walk.inner()?;
    let frontend = dsr::said(walk.tables, &inner, from.sender, ip.is_ipv6());
    let believed = dsr::believed(walk.tables, &flow, frontend);
    let sport = walk.note_reverse(&flow, from.sender, (frontend, believed))?;
    let translated = FlowKey { sport, ..flow.key };
    // A flow in use keeps the names of its client and of the frontend.
    if let Some(entry) = walk.tables.conntrack.get(&translated.reversed()).copied() {
        walk.tables.keep(flow.key.src);
        walk.tables.keep(entry.src);
    }
    walk.pop(ip, false)?;
    if sport != flow.key.sport {
        let entry = Entry::unchanged(&translated, Action::Forward, walk.now);
        walk.translate(&popped(walk, &flow), &entry)?;
    }
    let source = Mac::of_ip(network.gateway);
    walk.deliver((endpoint, source), ip.is_ipv6(), Reason::Decapsulated)
}

/// The flow of a packet without its outer headers.
pub fn popped(walk: &Walk<'_>, flow: &Flow) -> Flow {
    Flow { transport: flow.transport - walk.tunnel_length(), ..*flow }
}

/// Handles a packet to no endpoint of this node. It must be the reply of a flow that this node
/// translated.
fn to_client(walk: &mut Walk<'_>, from: From, ip: &Ip) -> Outcome {
    check_peer(walk, from.sender)?;
    let flow = walk.flow(ip, from.vni).ok().flatten().ok_or(Reason::NoEndpoint)?;
    let entry = walk.find_action(&flow, Action::Reply).ok_or(Reason::NoEndpoint)?;
    check_backend(walk, &entry, from.sender)?;
    reply(walk, ip, &flow, &entry)
}

/// "The ingress node takes a reply only from the node that the flow's backend is on."
pub fn check_backend(walk: &Walk<'_>, entry: &Entry, sender: Ipv4Addr) -> Result<(), Reason> {
    let backend = walk.tables.backend(entry.backend).ok_or(Reason::BackendGone)?;
    if backend.node == sender.into() { Ok(()) } else { Err(Reason::SpoofedInnerSource) }
}

fn reply(walk: &mut Walk<'_>, ip: &Ip, flow: &Flow, entry: &Entry) -> Outcome {
    walk.pop(ip, entry.vni == UNDERLAY_VNI)?;
    let flow = &popped(walk, flow);
    walk.count_sent(flow, entry, walk.frame.len());
    let [frontend, to] = walk.translate(flow, entry)?;
    if entry.vni != UNDERLAY_VNI {
        return walk.deliver_reply(entry, to, Reason::Decapsulated);
    }
    match walk.route(to) {
        Err(Reason::TooBig) => tell_backend(walk, flow, entry, frontend),
        routed => routed.map(|()| End::Sent(Reason::SentToClient)),
    }
}

/// "A backend elsewhere is told what fits the way to its client, by the frontend."
fn tell_backend(walk: &mut Walk<'_>, flow: &Flow, entry: &Entry, frontend: IpAddr) -> Outcome {
    let backend = walk.tables.backend(entry.backend).ok_or(Reason::BackendGone)?;
    walk.undo(flow, entry)?;
    icmp::too_big(walk, Router { ip: frontend, mac: Mac::default() }, MTU)?;
    walk.segment = 0;
    let inner = Ethernet::of_ip(Mac::default(), backend.mac, frontend.is_ipv6());
    walk.tunnel(Way { vni: flow.key.vni, node: backend.node.into(), inner })?;
    Ok(End::Sent(Reason::TooBigAnswered))
}
