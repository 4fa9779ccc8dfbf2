//! Headers and ICMP errors that the datapath makes (RFC 792, RFC 1191, RFC 4443).

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{Mac, Reason};

use super::{
    bytes::{ETHERNET, Ethernet, ICMP, SCTP, TCP, half, octets, ones_complement, put},
    packet::{ICMPV6, Ip},
    walk::{End, Outcome, Walk},
};

/// The address that answers, and its MAC.
#[derive(Clone, Copy)]
pub struct Router {
    /// The address.
    pub ip: IpAddr,
    /// The MAC.
    pub mac: Mac,
}

/// An IP header in front of `length` bytes, with an ECN field or DSCP.
pub fn header([src, dst]: [IpAddr; 2], protocol: u8, (tos, length): (u8, usize)) -> Vec<u8> {
    let addresses = [octets(src), octets(dst)].concat();
    if src.is_ipv6() {
        let length = (length as u16).to_be_bytes();
        let start = [0x60 | tos >> 4, tos << 4, 0, 0];
        return [&start[..], &length, &[protocol, 64], &addresses].concat();
    }
    let mut header = vec![0x45, tos];
    header.extend(((20 + length) as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(addresses);
    let checksum = ones_complement(&header);
    put(&mut header, 10, &checksum.to_be_bytes());
    header
}

/// The checksum over a body with its pseudo-header.
pub fn sealed([src, dst]: [IpAddr; 2], protocol: u8, body: &[u8]) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    ones_complement(&[&octets(src), &octets(dst), &length[..], &[0, 0, 0, protocol], body].concat())
}

/// Tells the sender of the packet that IP packets of `mtu` bytes fit. A packet that must not be
/// answered (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e) remains a drop. The answer to an
/// IPv6 packet fills 1280 bytes.
pub fn too_big(walk: &mut Walk<'_>, router: Router, mtu: usize) -> Outcome {
    let frame = &walk.frame;
    let ipv6 = router.ip.is_ipv6();
    let ip = Ip::at(frame, ETHERNET, ipv6).ok_or(Reason::TooBig)?;
    let quote = frame.get(ETHERNET..ETHERNET + if ipv6 { 1232 } else { 128 });
    let quote = quote.ok_or(Reason::TooBig)?.to_vec();
    let kind = frame[ip.payload()];
    let is_error = ip.is_icmp() && if ipv6 { kind < 128 } else { is_error(kind) };
    let has_df = ipv6 || half(frame, ETHERNET + 6).is_some_and(|field| field & 0x4000 != 0);
    if is_error || !has_df || ip.later || (!ipv6 && !is_host(ip.src)) {
        return Err(Reason::TooBig);
    }
    answer(walk, router, (if ipv6 { [2, 0] } else { [3, 4] }, mtu as u32), &quote)?;
    Ok(End::Sent(Reason::TooBigAnswered))
}

/// Unreachable, source quench, redirect, time exceeded, parameter problem.
fn is_error(kind: u8) -> bool {
    [3, 4, 5, 11, 12].contains(&kind)
}

/// Whether an address belongs to one host, so that it may be answered.
pub fn is_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unspecified(),
    }
}

/// Tells the sender of an IPv4 packet that its time to live has ended.
pub fn time_exceeded(walk: &mut Walk<'_>, (mac, ip): (Mac, Ipv4Addr)) -> Outcome {
    let quote = quote(walk).ok_or(Reason::TtlExceeded)?;
    answer(walk, Router { ip: ip.into(), mac }, ([11, 0], 0), &quote)?;
    Ok(End::Sent(Reason::TtlExceededAnswered))
}

/// Tells the sender of the packet that its destination port is closed. "SCTP by an unreachable
/// protocol."
pub fn unreachable(walk: &mut Walk<'_>, frontend: Router, proto: u8) -> Outcome {
    let is_sctp = proto == SCTP;
    let (quote, message) = if frontend.ip.is_ipv6() {
        let whole = walk.frame.get(ETHERNET..ETHERNET + 128);
        let quote = whole.or_else(|| walk.frame.get(ETHERNET..ETHERNET + 48));
        let message = if is_sctp { ([4, 1], 6) } else { ([1, 4], 0) };
        (quote.ok_or(Reason::Truncated)?.to_vec(), message)
    } else {
        (quote(walk).ok_or(Reason::NoBackend)?, ([3, if is_sctp { 2 } else { 3 }], 0))
    };
    answer(walk, frontend, message, &quote)?;
    Ok(End::Sent(Reason::NoBackendAnswered))
}

/// The quoted part of an IPv4 packet: the least for a short packet, and the whole header for TCP. A
/// short packet with options is not quoted.
fn quote(walk: &Walk<'_>) -> Option<Vec<u8>> {
    let ip = Ip::at(&walk.frame, ETHERNET, false)?;
    let length = match (walk.frame.len() >= ETHERNET + 128, ip.is_plain(), ip.protocol) {
        (true, ..) => 128,
        (false, true, TCP) => 40,
        (false, true, _) => 28,
        (false, false, _) => return None,
    };
    let mut quote = walk.frame[ETHERNET..].to_vec();
    // The length in an aggregate's header may exceed the packet. The kernel sets the packet to this
    // length.
    quote.resize(length, 0);
    Some(quote)
}

/// Makes the packet an ICMP error to its sender.
fn answer(
    walk: &mut Walk<'_>,
    router: Router,
    (kind, value): ([u8; 2], u32),
    quote: &[u8],
) -> Result<(), Reason> {
    let ipv6 = router.ip.is_ipv6();
    let ends = [router.ip, walk.ip(ipv6)?.src];
    let mut body = [&kind[..], &[0, 0], &value.to_be_bytes(), quote].concat();
    // Only ICMPv6 has a pseudo-header (RFC 4443, section 2.3), and only ICMP has the class
    // "internetwork control" (RFC 1812, section 4.3.2.5).
    let (protocol, class) = if ipv6 { (ICMPV6, 0) } else { (ICMP, 0xc0) };
    let sum = if ipv6 { sealed(ends, ICMPV6, &body) } else { ones_complement(&body) };
    put(&mut body, 2, &sum.to_be_bytes());
    reply(walk, router.mac, (ends, protocol, class), &body)
}

/// Makes the packet another packet to its sender.
pub fn reply(
    walk: &mut Walk<'_>,
    mac: Mac,
    (ends, protocol, tos): ([IpAddr; 2], u8, u8),
    body: &[u8],
) -> Result<(), Reason> {
    let back = Ethernet::of_ip(mac, Ethernet::at(&walk.frame, 0)?.src, ends[0].is_ipv6());
    let header = header(ends, protocol, (tos, body.len()));
    walk.frame = [&back.bytes()[..], &header, body].concat();
    Ok(())
}
