//! IPv6 in `xdp_underlay`: A's part of a published port, for TCP and UDP without extension headers that fit the
//! tunnel and whose neighbour is known, on an IPv4 underlay. The rest passes to `from_underlay`.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{CONNTRACK_REPLY, Conntrack, VNI_FLAG_IPV6},
};

use super::{
    balance::Balanced,
    conntrack::Flow,
    direct_return,
    flow6::{Naming, Said},
    frame::{ETHERNET, Ethernet, IPV6, TCP, TUNNEL, UDP, put},
    ipv6::Header,
    service6::{poses_as_inside, published_here},
    underlay::{check_backend, check_peer},
    walk::{End, Outcome, Walk},
    xdp::fits,
};

/// The header at an offset and what is behind it, if both are plain.
fn plain(walk: &Walk<'_>, at: usize) -> Option<(Header, Said)> {
    let ip = Header::at(walk, at).ok().filter(|ip| [TCP, UDP].contains(&ip.next))?;
    let said = walk.said(&ip).ok()?;
    Some((ip, said))
}

/// A packet to the host.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    let Some((ip, said)) = plain(walk, ETHERNET).filter(|_| !walk.tables.ipv6) else {
        return Ok(End::Pass);
    };
    let Some(published) = published_here(walk, ip.dst, said.proto, said.ports[1]) else {
        return Ok(End::Pass);
    };
    if !fits(walk, walk.frame.len() + TUNNEL) {
        return Ok(End::Pass);
    }
    let how = Naming { may_be_new: true, ..Naming::default() };
    let Some(flow) = walk.named(&said, UNDERLAY_VNI, how)? else { return Ok(End::Pass) };
    let (entry, backend) = match walk.balance(&flow, published.service, (published.target, 0)) {
        Ok(Balanced::To(entry, backend)) if backend.node != Be32::ZERO => (entry, backend),
        // What becomes of it is for `from_underlay` to say.
        Ok(_) | Err(Reason::BackendGone) => return Ok(End::Pass),
        Err(reason) => return Err(reason),
    };
    if poses_as_inside(walk, &backend, ip.src) {
        return Err(Reason::SpoofedInnerSource);
    }
    let total = walk.frame.len() + TUNNEL - ETHERNET;
    let hop = match walk.host.next_hop(&walk.tables.config, backend.node.into(), total) {
        Err(Reason::TooBig) => return Ok(End::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.keep_both6(&flow, &entry);
    walk.count_asked(&flow, &entry);
    walk.translate6(&flow, flow.transport, &entry)?;
    let source = walk.network(backend.vni).map_or(Mac::default(), |n| Mac::of_ip(n.gateway));
    let inner = Ethernet { dst: backend.mac, src: source, kind: IPV6 };
    let inner = direct_return::header6(&flow, &entry, ip.dst, inner);
    walk.push(backend.vni, backend.node.into(), inner, &hop);
    Ok(End::Sent(Reason::XdpEncapsulated))
}

/// A tunnel packet with IPv6 in it.
pub fn from_tunnel(walk: &mut Walk<'_>, vni: u32, sender: Ipv4Addr) -> Outcome {
    let here = TUNNEL + ETHERNET;
    let Some(to) = Header::unchecked(walk, here).map(|ip| ip.dst) else { return Ok(End::Pass) };
    let is_anybodys = to.is_unicast_link_local() || to.is_multicast();
    let ours = fits(walk, walk.frame.len())
        && Header::at(walk, here).is_ok_and(|ip| [TCP, UDP].contains(&ip.next));
    if !ours || is_anybodys || walk.endpoint6(vni, to).is_some() {
        return Ok(End::Pass);
    }
    check_peer(walk, sender)?;
    let Some((ip, said)) = plain(walk, here) else { return Ok(End::Pass) };
    let Some(flow) = walk.named(&said, vni, Naming::default())? else { return Ok(End::Pass) };
    match walk.find_action(&flow, CONNTRACK_REPLY) {
        Some(entry) if entry.vni & !VNI_FLAG_IPV6 == UNDERLAY_VNI => {
            check_backend(walk, &entry, sender)?;
            to_client(walk, &ip, &flow, &entry)
        }
        _ => Ok(End::Pass),
    }
}

fn to_client(walk: &mut Walk<'_>, ip: &Header, flow: &Flow, entry: &Conntrack) -> Outcome {
    let number = |number| walk.address6(entry.vni, number).ok_or(Reason::NoEndpoint);
    let (_, to): (Ipv6Addr, Ipv6Addr) = (number(entry.saddr)?, number(entry.daddr)?);
    let total = ip.payload + 40;
    let hop = match walk.host.next_hop6(&walk.tables.config, Some(to), total) {
        Err(Reason::TooBig) => return Ok(End::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(End::Pass);
    }
    walk.count_answered(flow, entry, total + ETHERNET);
    walk.pop()?;
    walk.translate6(flow, flow.transport - TUNNEL, entry)?;
    let (src, dst) = hop.macs;
    put(&mut walk.frame, 0, &Ethernet { src, dst, kind: IPV6 }.bytes());
    Ok(End::Sent(Reason::XdpSentToClient))
}
