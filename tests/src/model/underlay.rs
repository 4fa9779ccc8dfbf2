//! `from_underlay`: what the NIC receives.

use std::net::Ipv4Addr;

use overlay_common::{
    BRIDGE_VNI, Be16, Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        CONNTRACK_FORWARD, CONNTRACK_REPLY, Conntrack, ConntrackKey, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_FLAG_PUBLISHED, ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint, PeerKey, Published,
    },
    wire::Udp,
};

use super::{
    balance::{self, Balanced},
    conntrack::Flow,
    direct_return, fragment,
    frame::{ETHERNET, Ethernet, ICMP, IPV4, IPV6, Ip, SCTP, TCP, UDP, VLAN, bytes, half, put},
    host::MTU,
    icmp, ipv6, membership,
    observe::Party,
    outside, replicate, service6, underlay6,
    walk::{End, Outcome, Walk},
};

/// The outer IPv4 header, and what is behind it, of a packet that may be ours: IPv4 without options. A later
/// fragment is what its first one was.
pub fn outer(walk: &Walk<'_>) -> Option<(Ip, Udp)> {
    let ethernet = Ethernet::at(&walk.frame, 0).ok()?;
    let ip = Ip::at(&walk.frame, ETHERNET)?;
    if ethernet.kind != IPV4 || !ip.is_plain() {
        return None;
    }
    if ip.later {
        return Some((ip, fragment::head(walk, &ip, UNDERLAY_VNI).ok()?));
    }
    let field = |at| half(&walk.frame, ETHERNET + 20 + at).map(Be16::new);
    let head = Udp { source: field(0)?, dest: field(2)?, length: field(4)?, checksum: field(6)? };
    Some((ip, head))
}

/// Whether it is VXLAN to this node.
pub fn is_tunnel(walk: &Walk<'_>, ip: &Ip, port: Be16) -> bool {
    let config = &walk.tables.config;
    !walk.tables.ipv6
        && ip.protocol == UDP
        && !ip.is_fragment()
        && port == config.vxlan_port
        && Be32::from(ip.dst) == config.vtep
}

/// What is published under a port of an address of this host.
pub fn published_here(walk: &Walk<'_>, ip: &Ip, port: Be16) -> Option<Published> {
    walk.tables.agent.local_addrs.get(&ip.dst.into())?;
    [TCP, UDP, SCTP].contains(&ip.protocol).then(|| walk.published(ip.protocol, port)).flatten()
}

/// The VNI of a tunnel packet.
pub fn vni(walk: &Walk<'_>) -> Result<u32, Reason> {
    let header: [u8; 8] = bytes(&walk.frame, walk.tunnel_length() - 8).ok_or(Reason::Truncated)?;
    // The I flag; everything else but the 24 bits is ignored (RFC 7348, section 5).
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    if header[0] & 0x08 == 0 || vni == UNDERLAY_VNI || vni == BRIDGE_VNI {
        return Err(Reason::InvalidVni);
    }
    Ok(vni)
}

/// "The receiver accepts VXLAN from nodes of the cluster only."
pub fn check_peer(walk: &Walk<'_>, sender: Ipv4Addr) -> Result<(), Reason> {
    let peer = PeerKey { vni: UNDERLAY_VNI, node: sender.into() };
    let is_peer = walk.tables.agent.peers.contains_key(&peer);
    if is_peer { check_other(walk, sender) } else { Err(Reason::NotPeer) }
}

/// "A node hears nothing from itself."
pub fn check_other(walk: &Walk<'_>, sender: Ipv4Addr) -> Result<(), Reason> {
    let is_other = !sender.is_unspecified() && Be32::from(sender) != walk.tables.config.vtep;
    if is_other { Ok(()) } else { Err(Reason::NotPeer) }
}

/// A packet that came in by the NIC.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    if walk.tables.ipv6 {
        return underlay6::receive(walk);
    }
    let Some((ip, head)) = outer(walk) else {
        return not_ipv4(walk);
    };
    if is_tunnel(walk, &ip, head.dest) {
        return from_tunnel(walk, &ip);
    }
    to_host(walk, &ip, &head)
}

/// A packet that came in by another interface: "it accepts no tunnel packets", also none that the
/// kernel's device would understand.
pub fn receive_outside(walk: &mut Walk<'_>) -> Outcome {
    let config = walk.tables.config;
    let kind = half(&walk.frame, 12);
    if walk.tables.ipv6 {
        if underlay6::is_to_vtep(walk) {
            return Err(Reason::NotPeer);
        }
    } else if let Some(ip) = Ip::at(&walk.frame, ETHERNET)
        && kind == Some(IPV4)
        && (ip.protocol, ip.later) == (UDP, false)
        && (Be32::from(ip.dst) == config.vtep
            || walk.tables.agent.local_addrs.contains_key(&ip.dst.into()))
        && let Some(udp) = bytes::<8>(&walk.frame, ip.payload())
        && half(&udp, 2) == Some(config.vxlan_port.get())
    {
        return Err(Reason::NotPeer);
    }
    match outer(walk) {
        Some((ip, head)) => to_host(walk, &ip, &head),
        None => not_ipv4(walk),
    }
}

/// The host's, but for IPv6 to published ports.
pub fn not_ipv4(walk: &mut Walk<'_>) -> Outcome {
    let is_ipv6 = Ethernet::at(&walk.frame, 0).is_ok_and(|ethernet| ethernet.kind == IPV6);
    if is_ipv6 { service6::to_host(walk) } else { Ok(End::Pass) }
}

/// To an address of the host, as far as can be told.
pub fn to_host(walk: &mut Walk<'_>, ip: &Ip, head: &Udp) -> Outcome {
    if let Some(outcome) = outside::receive(walk, ip, head) {
        return outcome;
    }
    if ip.protocol == ICMP {
        // "Errors about what a backend has sent to a client outside are the backend's."
        let flow = walk.flow(ip, UNDERLAY_VNI);
        let is_forward =
            flow.is_ok_and(|flow| walk.find_action(&flow, CONNTRACK_FORWARD).is_some());
        let nothing = Published::default();
        return if is_forward { to_published(walk, ip, &nothing) } else { Ok(End::Pass) };
    }
    match published_here(walk, ip, head.dest) {
        Some(published) => to_published(walk, ip, &published),
        None => Ok(End::Pass),
    }
}

/// From a client outside.
fn to_published(walk: &mut Walk<'_>, ip: &Ip, published: &Published) -> Outcome {
    walk.check(ip)?;
    let flow = walk.flow(ip, UNDERLAY_VNI)?;
    let balanced = walk.balance(&flow, published.service, (published.target, 0))?;
    let Balanced::To(entry, backend) = balanced else {
        return balance::refuse(walk, ip, &balanced);
    };
    // A client cannot pose as a container of the backend's network.
    let source = match walk.network(backend.vni) {
        Some(n) if Be32::from(ip.src).get() & n.mask.get() == n.subnet.get() => {
            return Err(Reason::SpoofedInnerSource);
        }
        Some(network) => Mac::of_ip(network.gateway),
        None => Mac::default(),
    };
    walk.count_asked(&flow, &entry);
    walk.translate(ETHERNET, flow.transport, &entry, Reason::RewriteRefused)?;
    if backend.node == Be32::ZERO {
        let endpoint = Endpoint { mac: backend.mac, slot: backend.slot, ..Endpoint::default() };
        return walk.deliver(&endpoint, source, Reason::DeliveredLocal);
    }
    let asked = Ethernet::at(&walk.frame, 0)?.dst;
    let inner = direct_return::header(&flow, &entry, Ethernet::ipv4(source, backend.mac));
    match walk.tunnel(backend.vni, backend.node.into(), inner) {
        // The client is told by the address that it asked.
        Err(Reason::TooBig) => {
            icmp::undo(walk, &flow)?;
            icmp::fragmentation_needed(walk, (asked, ip.dst), MTU - walk.tunnel_length())
        }
        sent => sent,
    }
}

/// "A node is one of the cluster if it is in `peers`, or if the packet's inner source is on it." What
/// others send is dropped as theirs, whatever else is wrong with it.
fn from_tunnel(walk: &mut Walk<'_>, outer: &Ip) -> Outcome {
    let sender = outer.src;
    check_other(walk, sender)?;
    let outcome = accept(walk, sender, outer.ecn);
    if !matches!(outcome, Ok(End::Sent(_) | End::Copied(_))) {
        let party = std::mem::replace(&mut walk.party, Party::nobody());
        check_peer(walk, sender)?;
        walk.party = party;
    }
    conclude(walk, sender, outcome)
}

/// What becomes of a packet from a node of the cluster that is not delivered.
pub fn conclude(walk: &mut Walk<'_>, sender: Ipv4Addr, outcome: Outcome) -> Outcome {
    match outcome {
        Err(Reason::TunnelRefused) => {
            // The kernel's device is given no reserved bit to stumble over.
            let vni = vni(walk)?;
            let header = [&[0x08, 0, 0, 0][..], &(vni << 8).to_be_bytes()].concat();
            let at = walk.tunnel_length() - 8;
            put(&mut walk.frame, at, &header);
            Ok(End::Left(Reason::KernelDecap))
        }
        outcome => outcome.map_err(|reason| membership::judge(walk, sender, reason)),
    }
}

/// A tunnel packet from a node, under an outer ECN field.
pub fn accept(walk: &mut Walk<'_>, sender: Ipv4Addr, ecn: u8) -> Outcome {
    let tunnel = walk.tunnel_length();
    let vni = vni(walk)?;
    walk.party.vni = vni;
    let ethernet = Ethernet::at(&walk.frame, tunnel)?;
    if ethernet.kind == VLAN {
        return Err(Reason::TunnelRefused);
    }
    if ethernet.kind == IPV6 {
        return ipv6::from_tunnel(walk, (vni, sender), ecn);
    }
    if ethernet.kind != IPV4 {
        return Err(Reason::UnsupportedProtocol);
    }
    let ip = Ip::at(&walk.frame, tunnel + ETHERNET).ok_or(Reason::Truncated)?;
    walk.check(&ip)?;
    walk.combine(ecn, ip.at)?;
    match walk.endpoint(vni, ip.dst).filter(|endpoint| endpoint.kind == ENDPOINT_LOCAL) {
        Some(endpoint) => {
            walk.party.slot = endpoint.slot;
            to_local(walk, (vni, sender), &ip, &endpoint)
        }
        None if ethernet.dst.is_group() => {
            replicate::receive(walk, (vni, sender), ethernet.dst, &ip)
        }
        None => to_client(walk, (vni, sender), &ip),
    }
}

/// To an endpoint of this node.
fn to_local(
    walk: &mut Walk<'_>,
    (vni, sender): (u32, Ipv4Addr),
    ip: &Ip,
    endpoint: &Endpoint,
) -> Outcome {
    let source = match walk.endpoint(vni, ip.src) {
        // "An inner source only from the node it is on."
        Some(from) if from.kind != ENDPOINT_REMOTE || from.node != Be32::from(sender) => {
            return Err(Reason::SpoofedInnerSource);
        }
        Some(from) => {
            if from.flags & ENDPOINT_FLAG_BACKEND != 0
                && let Ok(flow) = walk.flow(ip, vni)
                && let Some(entry) = walk.find_action(&flow, CONNTRACK_REPLY)
            {
                return reply(walk, &flow, &entry);
            }
            from.mac
        }
        None => return from_outside(walk, (vni, sender), ip, endpoint),
    };
    walk.pop()?;
    walk.deliver(endpoint, source, Reason::Decapsulated)
}

/// From a client outside whose packet another node has translated: "only for endpoints that serve
/// a published port".
fn from_outside(
    walk: &mut Walk<'_>,
    (vni, sender): (u32, Ipv4Addr),
    ip: &Ip,
    endpoint: &Endpoint,
) -> Outcome {
    check_peer(walk, sender)?;
    let network = walk.network(vni).ok_or(Reason::NoEndpoint)?;
    let source = Be32::from(ip.src).get();
    if source & network.mask.get() == network.subnet.get() {
        return Err(Reason::SpoofedInnerSource);
    }
    if endpoint.flags & ENDPOINT_FLAG_PUBLISHED == 0 {
        return Err(Reason::NotPublished);
    }
    let flow = walk.flow(ip, vni)?;
    let tunnel = walk.tunnel_length();
    let said = direct_return::asked(&Ethernet::at(&walk.frame, tunnel)?);
    let believed = direct_return::believed(walk.tables, &flow, said);
    let sport = walk.note_return(&flow, sender, (said, believed))?;
    walk.pop()?;
    if sport != flow.key.sport {
        let ConntrackKey { saddr, daddr, dport, .. } = flow.key;
        let entry = Conntrack { saddr, daddr, sport, dport, ..Conntrack::default() };
        walk.translate(ETHERNET, flow.transport - tunnel, &entry, Reason::RewriteRefused)?;
    }
    walk.deliver(endpoint, Mac::of_ip(network.gateway), Reason::Decapsulated)
}

/// To nobody here: the reply of a flow that was translated here, or nothing.
fn to_client(walk: &mut Walk<'_>, (vni, sender): (u32, Ipv4Addr), ip: &Ip) -> Outcome {
    check_peer(walk, sender)?;
    let flow = walk.flow(ip, vni).map_err(|_| Reason::NoEndpoint)?;
    let entry = walk.find_action(&flow, CONNTRACK_REPLY).ok_or(Reason::NoEndpoint)?;
    check_backend(walk, &entry, sender)?;
    reply(walk, &flow, &entry)
}

/// "Node A takes a reply only from the node that the flow's backend is on."
pub fn check_backend(walk: &Walk<'_>, entry: &Conntrack, sender: Ipv4Addr) -> Result<(), Reason> {
    let backend = walk.tables.agent.backends.get(&entry.backend).ok_or(Reason::BackendGone)?;
    if backend.node == sender.into() { Ok(()) } else { Err(Reason::SpoofedInnerSource) }
}

fn reply(walk: &mut Walk<'_>, flow: &Flow, entry: &Conntrack) -> Outcome {
    let tunnel = walk.tunnel_length();
    walk.pop_to(entry.vni == UNDERLAY_VNI)?;
    let flow = &Flow { transport: flow.transport - tunnel, ..*flow };
    walk.count_answered(flow, entry, walk.frame.len());
    walk.translate(ETHERNET, flow.transport, entry, Reason::RewriteRefused)?;
    if entry.vni == UNDERLAY_VNI {
        return match walk.route_out(entry) {
            Err(Reason::TooBig) => tell_backend(walk, flow, entry),
            sent => sent,
        };
    }
    walk.deliver_reply(entry, Reason::Decapsulated)
}

/// "A backend elsewhere is told what fits the way to its client, by the address that the client asked."
fn tell_backend(walk: &mut Walk<'_>, flow: &Flow, entry: &Conntrack) -> Outcome {
    let backend = *walk.tables.agent.backends.get(&entry.backend).ok_or(Reason::BackendGone)?;
    icmp::undo(walk, flow)?;
    icmp::fragmentation_needed(walk, (Mac::default(), entry.saddr.into()), MTU)?;
    walk.segment = 0;
    let inner = Ethernet::ipv4(Mac::default(), backend.mac);
    walk.tunnel(flow.key.vni, backend.node.into(), inner)?;
    Ok(End::Sent(Reason::TooBigAnswered))
}
