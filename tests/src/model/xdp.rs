//! `xdp_underlay`: A's part of a published port, for plain packets that fit the tunnel and whose
//! neighbour is known. The rest passes to `from_underlay`.

use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{CONNTRACK_REPLY, Conntrack, Published},
};

use super::{
    conntrack::Flow,
    frame::{ETHERNET, Ethernet, IPV4, Ip, TUNNEL},
    underlay::{check_backend, check_peer, is_tunnel, outer, published_here, vni},
    walk::{End, Outcome, Walk},
};

/// A packet that came in by the NIC.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    let Some((ip, port)) = outer(walk).filter(|(ip, _)| !ip.is_fragment()) else {
        return Ok(End::Pass);
    };
    if is_tunnel(walk, &ip, port) {
        // ECT(1) or CE: only TC combines marks.
        if ip.ecn & 1 != 0 {
            return Ok(End::Pass);
        }
        return from_tunnel(walk, &ip);
    }
    match published_here(walk, &ip, port) {
        Some(published) => to_published(walk, &ip, &published),
        None => Ok(End::Pass),
    }
}

/// Whether a tunnel packet of `length` bytes fits the underlay.
fn fits(walk: &Walk<'_>, length: usize) -> bool {
    length <= walk.tables.config.underlay_mtu as usize + ETHERNET
}

fn to_published(walk: &mut Walk<'_>, ip: &Ip, published: &Published) -> Outcome {
    ip.check(&walk.frame)?;
    if !fits(walk, walk.frame.len() + TUNNEL) {
        return Ok(End::Pass);
    }
    let flow = walk.flow(ip, UNDERLAY_VNI)?;
    let (entry, backend) = walk.balance(&flow, published.service, published.target)?;
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
    walk.translate(ETHERNET, flow.transport, &entry, Reason::Truncated)?;
    let inner = Ethernet::ipv4(Mac::default(), backend.mac);
    walk.push(backend.vni, backend.node.into(), inner, &hop);
    Ok(End::Sent(Reason::XdpEncapsulated))
}

fn from_tunnel(walk: &mut Walk<'_>, outer: &Ip) -> Outcome {
    check_peer(walk, outer.src)?;
    let vni = vni(walk)?;
    walk.party.vni = vni;
    let ethernet = Ethernet::at(&walk.frame, TUNNEL)?;
    let ip = Ip::at(&walk.frame, TUNNEL + ETHERNET).ok_or(Reason::Truncated)?;
    if ethernet.kind != IPV4 || !ip.is_plain() || ip.is_fragment() || !fits(walk, walk.frame.len())
    {
        return Ok(End::Pass);
    }
    ip.check(&walk.frame)?;
    let Ok(flow) = walk.flow(&ip, vni) else {
        return Ok(End::Pass);
    };
    if walk.endpoint(vni, ip.dst).is_some() {
        return Ok(End::Pass);
    }
    match walk.find_action(&flow, CONNTRACK_REPLY) {
        Some(entry) if entry.vni == UNDERLAY_VNI => {
            check_backend(walk, &entry, outer.src)?;
            to_client(walk, &ip, &flow, &entry)
        }
        _ => Ok(End::Pass),
    }
}

fn to_client(walk: &mut Walk<'_>, ip: &Ip, flow: &Flow, entry: &Conntrack) -> Outcome {
    let hop = walk.host.next_hop(&walk.tables.config, entry.daddr.into(), ip.total)?;
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.translate(ip.at, flow.transport, entry, Reason::Truncated)?;
    walk.pop();
    walk.address(&hop);
    Ok(End::Sent(Reason::XdpSentToClient))
}
