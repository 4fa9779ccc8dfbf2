//! ICMP errors that the datapath sends (RFC 792, RFC 1191).

use std::net::Ipv4Addr;

use overlay_common::{
    Mac, Reason,
    maps::{Conntrack, ConntrackKey},
};

use super::{
    conntrack::{Flow, Part},
    frame::{ETHERNET, Ethernet, ICMP, Ip, SCTP, TCP, half, ones_complement, put},
    walk::{End, Outcome, Walk},
};

/// How much of a packet its answer quotes.
const QUOTE: usize = 128;

/// Gives a packet its own tuple back: its sender must find what it sent in the answer.
pub fn undo(walk: &mut Walk<'_>, flow: &Flow) -> Result<(), Reason> {
    // No error is answered with another one.
    if flow.part == Part::Quoted {
        return Err(Reason::TooBig);
    }
    let ConntrackKey { saddr, daddr, sport, dport, .. } = flow.key;
    let own = Conntrack { saddr, daddr, sport, dport, ..Conntrack::default() };
    walk.translate(ETHERNET, flow.transport, &own, Reason::RewriteRefused)
}

/// Tells the sender of the packet that IPv4 packets of `mtu` bytes fit. What must not be answered
/// (RFC 1122, section 3.2.2) stays a drop.
pub fn fragmentation_needed(
    walk: &mut Walk<'_>,
    (mac, router): (Mac, Ipv4Addr),
    mtu: usize,
) -> Outcome {
    let frame = &walk.frame;
    let ip = Ip::at(frame, ETHERNET).ok_or(Reason::TooBig)?;
    let quote = frame.get(ETHERNET..ETHERNET + QUOTE).ok_or(Reason::TooBig)?.to_vec();
    let may_fragment = half(frame, ETHERNET + 6).is_some_and(|field| field & 0x4000 == 0);
    let source = ip.src.octets()[0];
    if may_fragment || ip.later || source == 0 || source == 127 || source >= 224 {
        return Err(Reason::TooBig);
    }
    // Unreachable, source quench, redirect, time exceeded, parameter problem.
    if ip.protocol == ICMP && [3, 4, 5, 11, 12].contains(&frame[ip.payload()]) {
        return Err(Reason::TooBig);
    }
    answer(walk, (mac, router), ([3, 4], mtu as u16), &quote)?;
    Ok(End::Sent(Reason::TooBigAnswered))
}

/// Tells the sender of the packet that its time to live has ended. Of a short packet the least is
/// quoted, and of TCP the whole header.
pub fn time_exceeded(walk: &mut Walk<'_>, router: (Mac, Ipv4Addr)) -> Outcome {
    let quote = quote(walk).ok_or(Reason::TtlExceeded)?;
    answer(walk, router, ([11, 0], 0), &quote)?;
    Ok(End::Sent(Reason::TtlExceededAnswered))
}

/// Tells the sender of the packet that nobody listens where it went.
pub fn port_unreachable(walk: &mut Walk<'_>, asked: (Mac, Ipv4Addr)) -> Outcome {
    let quote = quote(walk).ok_or(Reason::NoBackend)?;
    // "SCTP by an unreachable protocol."
    let is_sctp = Ip::at(&walk.frame, ETHERNET).is_some_and(|ip| ip.protocol == SCTP);
    answer(walk, asked, ([3, if is_sctp { 2 } else { 3 }], 0), &quote)?;
    Ok(End::Sent(Reason::NoBackendAnswered))
}

/// What is quoted of a packet; nothing of a short one with options.
fn quote(walk: &Walk<'_>) -> Option<Vec<u8>> {
    let ip = Ip::at(&walk.frame, ETHERNET)?;
    let length = match (walk.frame.len() >= ETHERNET + QUOTE, ip.is_plain(), ip.protocol) {
        (true, ..) => QUOTE,
        (false, true, TCP) => 40,
        (false, true, _) => 28,
        (false, false, _) => return None,
    };
    let mut quote = walk.frame[ETHERNET..].to_vec();
    // An aggregate may say that there is more than there is. The kernel brings it to this length.
    quote.resize(length, 0);
    Some(quote)
}

/// Makes the packet an ICMP error to its sender.
fn answer(
    walk: &mut Walk<'_>,
    (mac, router): (Mac, Ipv4Addr),
    ([kind, code], mtu): ([u8; 2], u16),
    quote: &[u8],
) -> Result<(), Reason> {
    let frame = &walk.frame;
    let ip = Ip::at(frame, ETHERNET).ok_or(Reason::Truncated)?;
    let mut body = vec![kind, code, 0, 0, 0, 0];
    body.extend(mtu.to_be_bytes());
    body.extend(quote);
    let checksum = ones_complement(&body);
    put(&mut body, 2, &checksum.to_be_bytes());

    let mut header = vec![0x45, 0xc0];
    header.extend(((20 + body.len()) as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, ICMP, 0, 0]);
    header.extend(router.octets());
    header.extend(ip.src.octets());
    let checksum = ones_complement(&header);
    put(&mut header, 10, &checksum.to_be_bytes());

    let sender = Ethernet::at(frame, 0)?.src;
    walk.frame = [&Ethernet::ipv4(mac, sender).bytes()[..], &header, &body].concat();
    Ok(())
}
