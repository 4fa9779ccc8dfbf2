//! `xdp_underlay`: decapsulation for endpoints here, and A's part of a published port, for plain
//! packets that fit the tunnel and whose neighbour is known. The rest passes to `from_underlay`.

use std::net::Ipv4Addr;

use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        CONFIG_XDP_DECAP, CONNTRACK_REPLY, Conntrack, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST,
        ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint, Published,
    },
};

use super::{
    balance::Balanced,
    conntrack::Flow,
    direct_return,
    frame::{ETHERNET, Ethernet, IPV4, IPV6, Ip, SCTP, TCP, TUNNEL, UDP},
    membership,
    observe::Party,
    underlay::{check_backend, check_other, check_peer, is_tunnel, outer, published_here, vni},
    walk::{End, Outcome, Walk},
    xdp6,
};

/// A packet that came in by the NIC.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    if Ethernet::at(&walk.frame, 0).is_ok_and(|ethernet| ethernet.kind == IPV6) {
        return xdp6::receive(walk);
    }
    let Some((ip, head)) = outer(walk).filter(|(ip, _)| !ip.is_fragment()) else {
        return Ok(End::Pass);
    };
    if is_tunnel(walk, &ip, head.dest) {
        // ECT(1) or CE: only TC combines marks.
        if ip.ecn & 1 != 0 {
            return Ok(End::Pass);
        }
        return from_tunnel(walk, &ip);
    }
    if ip.protocol == SCTP {
        return Ok(End::Pass);
    }
    match published_here(walk, &ip, head.dest) {
        Some(published) => to_published(walk, &ip, &published),
        None => Ok(End::Pass),
    }
}

/// Whether a tunnel packet of `length` bytes fits the underlay.
pub fn fits(walk: &Walk<'_>, length: usize) -> bool {
    length <= walk.tables.config.underlay_mtu as usize + ETHERNET
}

fn to_published(walk: &mut Walk<'_>, ip: &Ip, published: &Published) -> Outcome {
    if walk.tables.ipv6 {
        return Ok(End::Pass);
    }
    walk.check(ip)?;
    if !fits(walk, walk.frame.len() + TUNNEL) {
        return Ok(End::Pass);
    }
    let flow = walk.flow(ip, UNDERLAY_VNI)?;
    let balanced = match walk.balance(&flow, published.service, (published.target, 0)) {
        // What becomes of it is for `from_underlay` to say.
        Err(Reason::BackendGone) => return Ok(End::Pass),
        balanced => balanced?,
    };
    let Balanced::To(entry, backend) = balanced else {
        // The answer is for `from_underlay` to give.
        return Ok(End::Pass);
    };
    if backend.node == Be32::ZERO {
        return Ok(End::Pass);
    }
    let total = walk.frame.len() + TUNNEL - ETHERNET;
    let hop = match walk.host.next_hop(&walk.tables.config, backend.node.into(), total) {
        // The answer is for `from_underlay` to give.
        Err(Reason::TooBig) => return Ok(End::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.count_asked(&flow, &entry);
    walk.translate(ETHERNET, flow.transport, &entry, Reason::Truncated)?;
    let inner = Ethernet::ipv4(Mac::default(), backend.mac);
    let inner = direct_return::header(&flow, &entry, inner);
    walk.push(backend.vni, backend.node.into(), inner, &hop);
    Ok(End::Sent(Reason::XdpEncapsulated))
}

/// What does not leave from here is passed on if it is a node's, and dropped if it is a stranger's.
fn from_tunnel(walk: &mut Walk<'_>, outer: &Ip) -> Outcome {
    check_other(walk, outer.src)?;
    let outcome = accept(walk, outer.src);
    if !matches!(outcome, Ok(End::Sent(_))) {
        let party = std::mem::replace(&mut walk.party, Party::nobody());
        check_peer(walk, outer.src)?;
        walk.party = party;
    }
    outcome.map_err(|reason| membership::judge(walk, outer.src, reason))
}

fn accept(walk: &mut Walk<'_>, sender: Ipv4Addr) -> Outcome {
    let vni = vni(walk)?;
    walk.party.vni = vni;
    let ethernet = Ethernet::at(&walk.frame, TUNNEL)?;
    if ethernet.kind == IPV6 {
        return xdp6::from_tunnel(walk, vni, sender);
    }
    let ip = Ip::at(&walk.frame, TUNNEL + ETHERNET).ok_or(Reason::Truncated)?;
    if ethernet.kind != IPV4 || !ip.is_plain() || ip.is_fragment() || !fits(walk, walk.frame.len())
    {
        return Ok(End::Pass);
    }
    walk.check(&ip)?;
    match walk.endpoint(vni, ip.dst) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL => {
            walk.party.slot = endpoint.slot;
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
    let Some(from) = walk.endpoint(vni, ip.src) else {
        return Ok(End::Pass);
    };
    if from.kind != ENDPOINT_REMOTE || from.node != Be32::from(sender) {
        return Err(Reason::SpoofedInnerSource);
    }
    if from.flags & ENDPOINT_FLAG_BACKEND != 0 && ip.protocol != UDP {
        return Ok(End::Pass);
    }
    if from.flags & ENDPOINT_FLAG_BACKEND != 0
        && let Ok(flow) = walk.flow(ip, vni)
        && walk.find_action(&flow, CONNTRACK_REPLY).is_some()
    {
        return Ok(End::Pass);
    }
    walk.pop()?;
    walk.deliver(endpoint, from.mac, Reason::XdpDecapsulated)
}

/// To nobody's address.
fn reply(walk: &mut Walk<'_>, (vni, sender): (u32, Ipv4Addr), ip: &Ip) -> Outcome {
    check_peer(walk, sender)?;
    let flow = [TCP, UDP].contains(&ip.protocol).then(|| walk.flow(ip, vni).ok()).flatten();
    let entry = flow.as_ref().and_then(|flow| walk.find_action(flow, CONNTRACK_REPLY));
    let (Some(flow), Some(entry)) = (flow, entry) else {
        // Nobody but a node of the network has anything to say here.
        return match membership::stranger(walk, sender) {
            Some(reason) => Err(reason),
            None => Ok(End::Pass),
        };
    };
    if entry.vni != UNDERLAY_VNI {
        return Ok(End::Pass);
    }
    check_backend(walk, &entry, sender)?;
    to_client(walk, ip, &flow, &entry)
}

fn to_client(walk: &mut Walk<'_>, ip: &Ip, flow: &Flow, entry: &Conntrack) -> Outcome {
    let hop = match walk.host.next_hop(&walk.tables.config, entry.daddr.into(), ip.total) {
        // The answer is for `from_underlay` to give.
        Err(Reason::TooBig) => return Ok(End::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.count_answered(flow, entry, ip.total + ETHERNET);
    walk.translate(ip.at, flow.transport, entry, Reason::Truncated)?;
    walk.pop()?;
    walk.address(&hop);
    Ok(End::Sent(Reason::XdpSentToClient))
}
