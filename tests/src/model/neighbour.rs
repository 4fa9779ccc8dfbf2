//! Packets that gateways, endpoints and VIPs answer themselves: ARP, neighbour discovery and echo
//! requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Mac, Reason,
    maps::{ENDPOINT_GATEWAY, ENDPOINT_LOCAL, ENDPOINT_SERVICE, Endpoint, Link, Link6},
};

use super::{
    agent::link_local,
    bytes::{ARP, ETHERNET, Ethernet, IPV6, bytes, half, octets, put, updated},
    icmp::sealed,
    packet::{ICMPV6, Ip, behind},
    walk::{End, Outcome, Walk},
};

/// A request of the endpoint for an address of another one is answered (RFC 826).
pub fn arp(walk: &mut Walk<'_>, link: &Link) -> Outcome {
    let arp: [u8; 28] = bytes(&walk.frame, ETHERNET).ok_or(Reason::Truncated)?;
    // Ethernet, IPv4, and the lengths of their addresses.
    if arp[..6] != [0, 1, 0x08, 0x00, 6, 4] {
        return Err(Reason::Malformed);
    }
    if half(&arp, 6) != Some(1) {
        return Err(Reason::ArpUnknown);
    }
    let sender = &arp[14..18];
    // A probe comes from 0.0.0.0 (RFC 5227).
    let is_own = sender == link.ip.octets() || sender == [0; 4];
    if arp[8..14] != link.mac.bytes() || !is_own {
        return Err(Reason::SpoofedSource);
    }
    let target: [u8; 4] = bytes(&arp, 24).ok_or(Reason::Truncated)?;
    let owner = walk.tables.endpoint(link.vni, Ipv4Addr::from(target).into());
    let owner = owner.filter(|_| target != link.ip.octets()).ok_or(Reason::ArpUnknown)?;
    let mut reply = arp;
    put(&mut reply, 6, &2u16.to_be_bytes());
    put(&mut reply, 8, &owner.mac.bytes());
    put(&mut reply, 14, &target);
    put(&mut reply, 18, &link.mac.bytes());
    put(&mut reply, 24, sender);
    put(&mut walk.frame, ETHERNET, &reply);
    let ethernet = Ethernet { dst: link.mac, src: owner.mac, kind: ARP };
    put(&mut walk.frame, 0, &ethernet.bytes());
    Ok(End::Sent(Reason::ArpAnswered))
}

/// Whether an ICMPv6 message belongs to neighbour discovery: solicitations, advertisements and
/// redirects (RFC 4861, section 4).
pub fn is_discovery(kind: u8) -> bool {
    (133..=137).contains(&kind)
}

/// Neighbour discovery behind up to eight extension headers is rejected as well.
pub fn hidden(walk: &Walk<'_>, ip: &Ip) -> Result<(), Reason> {
    let (mut next, mut at) = (ip.protocol, ip.payload());
    if next == ICMPV6 {
        return Ok(());
    }
    for _ in 0..8 {
        if next == ICMPV6 {
            let [kind] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
            return if is_discovery(kind) { Err(Reason::NdUnknown) } else { Ok(()) };
        }
        let Some(following) = behind(&walk.frame, next, at) else { return Ok(()) };
        (next, at) = following?;
    }
    Err(Reason::Malformed)
}

/// Answers a solicitation for an address of an endpoint or of the gateway (RFC 4861, section
/// 7.2.4).
pub fn discovery(walk: &mut Walk<'_>, link: &Link, own: &Link6, ip: &Ip) -> Outcome {
    let at = ip.payload();
    if walk.frame[at] != 135 {
        return Err(Reason::NdUnknown);
    }
    let message: [u8; 24] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
    let length = ip.total - ip.header;
    if length < 24 {
        return Err(Reason::Truncated);
    }
    // The length in an aggregate's header may exceed the packet.
    let option: Option<[u8; 8]> = match length {
        32.. => Some(bytes(&walk.frame, at + 24).ok_or(Reason::Truncated)?),
        _ => None,
    };
    let target = Ipv6Addr::from(bytes::<16>(&message, 8).ok_or(Reason::Truncated)?);
    let is_empty = option.is_some_and(|option| option[1] == 0);
    if ip.ttl != 255 || message[1] != 0 || target.is_multicast() || is_empty {
        return Err(Reason::Malformed);
    }
    let tells = option.filter(|option| option[0] == 1);
    let is_probe = ip.src.is_unspecified();
    let to_solicited_node = octets(ip.dst)[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
    if is_probe && (tells.is_some() || !to_solicited_node) {
        return Err(Reason::Malformed);
    }
    if tells.is_some_and(|option| option[2..] != link.mac.bytes()) {
        return Err(Reason::SpoofedSource);
    }
    let owner = walk
        .tables
        .endpoint(link.vni, target.into())
        .filter(|owner| (ENDPOINT_LOCAL..=ENDPOINT_SERVICE).contains(&owner.kind))
        .filter(|_| target != Ipv6Addr::from(own.ip) && target != link_local(link.mac))
        .ok_or(Reason::NdUnknown)?;
    walk.frame = advertisement((ip.src, link.mac), target, &owner);
    Ok(End::Sent(Reason::NdAnswered))
}

fn advertisement((src, mac): (IpAddr, Mac), target: Ipv6Addr, owner: &Endpoint) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into();
    let is_probe = src.is_unspecified();
    let to = if is_probe { all_nodes } else { src };
    let dst = if is_probe { Mac::new([0x33, 0x33, 0, 0, 0, 1]) } else { mac };
    // Override; solicited unless it goes to all nodes; router.
    let mut flags = 0x20;
    flags |= if is_probe { 0 } else { 0x40 };
    flags |= if owner.kind == ENDPOINT_GATEWAY { 0x80 } else { 0 };
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(owner.mac.bytes());
    let sum = sealed([target.into(), to], ICMPV6, &message);
    put(&mut message, 2, &sum.to_be_bytes());
    let mut frame = Ethernet { dst, src: owner.mac, kind: IPV6 }.bytes().to_vec();
    frame.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    frame.extend([target.octets().to_vec(), octets(to)].concat());
    frame.extend(message);
    frame
}

/// Gateways and VIPs answer echo requests (RFC 792; RFC 4443, section 4) and no other ICMP.
pub fn echo(walk: &mut Walk<'_>, ip: &Ip) -> Outcome {
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let (request, reply) = if ip.is_ipv6() { ([128, 0], [129, 0]) } else { ([8, 0], [0, 0]) };
    let at = ip.payload();
    if bytes(&walk.frame, at).ok_or(Reason::Truncated)? != request {
        return Err(Reason::GatewayPort);
    }
    let checksum = half(&walk.frame, at + 2).ok_or(Reason::Truncated)?;
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    let frame = &mut walk.frame;
    put(frame, at, &reply);
    put(frame, at + 2, &updated(checksum, &request, &reply).to_be_bytes());
    // A checksum stays the same when the words under it only change places.
    let addresses = ip.at + if ip.is_ipv6() { 8 } else { 12 };
    put(frame, addresses, &[octets(ip.dst), octets(ip.src)].concat());
    put(frame, 0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..ethernet }.bytes());
    Ok(End::Sent(Reason::EchoAnswered))
}
