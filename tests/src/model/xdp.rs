//! `xdp_underlay`: decapsulation for endpoints here, and the ingress node's part of a published
//! port, for plain packets that fit the tunnel and have a known neighbour. All other packets pass
//! to `from_underlay`.

use std::net::Ipv4Addr;

use overlay_common::{
    Be32, Reason, UNDERLAY_VNI,
    maps::{
        CONFIG_XDP_DECAP, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST, ENDPOINT_LOCAL,
        ENDPOINT_REMOTE, Endpoint,
    },
};

use super::{
    agent::Naming,
    balance::Balanced,
    bytes::{ETHERNET, Ethernet, TCP, TUNNEL, UDP},
    packet::{Flow, Ip},
    published::{dest, head, way},
    state::{Action, Entry, Marks},
    underlay::{
        Tunneled, check_backend, check_other, check_peer, check_stranger, classify, is_of_link,
        popped, tunneled, wrong_node,
    },
    walk::{End, Outcome, Walk},
};

/// A packet that came in by the NIC.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    if walk.tables.ipv6 {
        return Ok(End::Pass);
    }
    match tunneled(walk)? {
        // ECT(1) or CE: only TC combines marks.
        Some(Tunneled { ecn, .. }) if ecn & 1 != 0 => Ok(End::Pass),
        Some(Tunneled { sender, .. }) => from_tunnel(walk, sender),
        None => to_published(walk),
    }
}

/// Whether a tunnel packet of `length` bytes fits the underlay.
fn fits(walk: &Walk<'_>, length: usize) -> bool {
    length <= walk.tables.config.underlay_mtu as usize + ETHERNET
}

/// Whether XDP translates a packet.
fn is_plain(ip: &Ip) -> bool {
    [TCP, UDP].contains(&ip.protocol) && ip.is_plain() && !ip.is_fragment()
}

fn to_published(walk: &mut Walk<'_>) -> Outcome {
    let Ok(Some(ipv6)) = Ethernet::at(&walk.frame, 0).map(|ethernet| ethernet.is_ip()) else {
        return Ok(End::Pass);
    };
    let Some(ip) = Ip::at(&walk.frame, ETHERNET, ipv6).filter(is_plain) else {
        return Ok(End::Pass);
    };
    // `from_underlay` reports the faults of an IPv6 packet.
    let said = match (walk.said(&ip), ip.check(walk)) {
        (Ok(said), Ok(())) if said.fault.is_none() => Ok(said),
        _ if ipv6 => return Ok(End::Pass),
        (said, checked) => checked.and(said),
    };
    let Some(head) = head(walk, &ip) else { return Ok(End::Pass) };
    let published = walk.tables.published_at(ip.dst, ip.protocol, dest(&head));
    let Some(published) = published else { return Ok(End::Pass) };
    ip.check(walk)?;
    if !fits(walk, walk.frame.len() + TUNNEL) {
        return Ok(End::Pass);
    }
    let how = Naming { may_be_new: true, ..Naming::default() };
    let Some(flow) = walk.named(&said?, UNDERLAY_VNI, how)? else { return Ok(End::Pass) };
    let target = (published.target.get(), Marks::default());
    let (entry, backend) = match walk.balance(&flow, published.service, target) {
        Ok(Balanced::To(entry, backend)) if backend.node != Be32::ZERO => (entry, backend),
        // `from_underlay` decides on the packet.
        Ok(_) | Err(Reason::BackendGone) => return Ok(End::Pass),
        Err(reason) => return Err(reason),
    };
    if ipv6 && walk.tables.poses_as_inside(&backend, ip.src) {
        return Err(Reason::SpoofedInnerSource);
    }
    let total = walk.frame.len() + TUNNEL - ETHERNET;
    let node = Ipv4Addr::from(backend.node);
    let hop = match walk.host.next_hop(&walk.tables.config, node.into(), total) {
        // The answer is for `from_underlay` to give.
        Err(Reason::TooBig) => return Ok(End::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.keep_both(&flow, &entry);
    walk.count_received(&flow, &entry);
    walk.translate(&flow, &entry)?;
    let source = walk.tables.gateway_mac(backend.vni).filter(|_| ipv6).unwrap_or_default();
    let way = way(ip.dst, (&flow, &entry), &backend, source);
    walk.push(way, &hop);
    Ok(End::Sent(Reason::XdpEncapsulated))
}

/// A packet that this node cannot send is passed on if a node of the cluster sent it, and dropped
/// otherwise.
fn from_tunnel(walk: &mut Walk<'_>, sender: Ipv4Addr) -> Outcome {
    check_other(walk, sender)?;
    let outcome = accept(walk, sender);
    if !matches!(outcome, Ok(End::Sent(_))) {
        check_stranger(walk, sender)?;
    }
    outcome.map_err(|reason| classify(walk, sender, reason))
}

fn accept(walk: &mut Walk<'_>, sender: Ipv4Addr) -> Outcome {
    let vni = walk.vni()?;
    walk.party.vni = vni;
    let kind = walk.inner()?.is_ip();
    let ipv6 = kind == Some(true);
    let ip = match Ip::at(&walk.frame, TUNNEL + ETHERNET, ipv6) {
        None if !ipv6 => return Err(Reason::Truncated),
        None => return Ok(End::Pass),
        Some(ip) => ip,
    };
    if kind.is_none() || !ip.is_plain() || ip.is_fragment() || !fits(walk, walk.frame.len()) {
        return Ok(End::Pass);
    }
    if ipv6 && (ip.check(walk).is_err() || !is_plain(&ip) || is_of_link(ip.dst)) {
        return Ok(End::Pass);
    }
    ip.check(walk)?;
    match walk.tables.endpoint(vni, ip.dst) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL && !ipv6 => {
            walk.party.counter = endpoint.counter;
            to_local(walk, (vni, sender), &ip, &endpoint)
        }
        Some(_) => Ok(End::Pass),
        None => reply(walk, (vni, sender), &ip),
    }
}

/// "XDP decapsulates all but TCP, where it may", and no flow that is translated here.
fn to_local(
    walk: &mut Walk<'_>,
    (vni, sender): (u32, Ipv4Addr),
    ip: &Ip,
    endpoint: &Endpoint,
) -> Outcome {
    let may = walk.tables.config.flags & CONFIG_XDP_DECAP != 0;
    if !may || endpoint.flags & ENDPOINT_FLAG_HOST != 0 || ip.protocol == TCP {
        return Ok(End::Pass);
    }
    let Some(from) = walk.tables.endpoint(vni, ip.src) else { return Ok(End::Pass) };
    if from.kind != ENDPOINT_REMOTE || from.node != Be32::from(sender) {
        return Err(Reason::SpoofedInnerSource);
    }
    if from.flags & ENDPOINT_FLAG_BACKEND != 0 {
        let flow = walk.flow(ip, vni).ok().flatten().filter(|_| ip.protocol == UDP);
        let reply = flow.and_then(|flow| walk.find_action(&flow, Action::Reply));
        if ip.protocol != UDP || reply.is_some() {
            return Ok(End::Pass);
        }
    }
    walk.pop(ip, false)?;
    walk.deliver((endpoint, from.mac), ip.is_ipv6(), Reason::XdpDecapsulated)
}

/// Handles a packet to an address that no endpoint has.
fn reply(walk: &mut Walk<'_>, (vni, sender): (u32, Ipv4Addr), ip: &Ip) -> Outcome {
    check_peer(walk, sender)?;
    let flow = if is_plain(ip) { walk.flow(ip, vni).ok().flatten() } else { None };
    let entry = flow.as_ref().and_then(|flow| walk.find_action(flow, Action::Reply));
    let (Some(flow), Some(entry)) = (flow, entry) else {
        // Only a node of the network may send this; `from_underlay` decides on IPv6.
        let wrong = wrong_node(walk, sender).filter(|_| !ip.is_ipv6());
        return wrong.map_or(Ok(End::Pass), Err);
    };
    if entry.vni != UNDERLAY_VNI {
        return Ok(End::Pass);
    }
    check_backend(walk, &entry, sender)?;
    to_client(walk, ip, &flow, &entry)
}

fn to_client(walk: &mut Walk<'_>, ip: &Ip, flow: &Flow, entry: &Entry) -> Outcome {
    let address = |name| walk.tables.address(entry.vni, name).ok_or(Reason::NoEndpoint);
    let (_, to) = (address(entry.src)?, address(entry.dst)?);
    let hop = match walk.host.next_hop(&walk.tables.config, to, ip.total) {
        // The answer is for `from_underlay` to give.
        Err(Reason::TooBig) => return Ok(End::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.count_sent(flow, entry, ip.total + ETHERNET);
    walk.pop(ip, true)?;
    walk.translate(&popped(walk, flow), entry)?;
    walk.address(&hop, to.is_ipv6());
    Ok(End::Sent(Reason::XdpSentToClient))
}
