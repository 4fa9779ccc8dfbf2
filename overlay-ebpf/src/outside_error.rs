//! ICMP errors from outside about containers' flows: the quoted packet has this host's address and
//! port, the container must see its own (RFC 5508, section 4.2).

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI, checksum,
    maps::{CONNTRACK_UNMASQUERADE, Config, ConntrackKey},
    wire::{Ipv4, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Udp},
};

use crate::{
    Outcome, conntrack, fallible,
    forward::deliver,
    maps::{NETWORKS, Work, lookup, work},
    outside::{ECHO_REQUEST, destination},
    packet::{ETH_LEN, IPV4_LEN, check_ipv4, is_gso, load, load_at, store, store_rehash},
};

/// Length of the header of an ICMP error.
const ICMP_LEN: usize = 8;
/// Offset of the ICMP header.
const ICMP: usize = ETH_LEN + IPV4_LEN;
/// Offset of the checksum in it.
const ICMP_CHECKSUM: usize = ICMP + 2;
/// Offset of the quoted IPv4 header.
const QUOTED: usize = ICMP + ICMP_LEN;
/// Offset of what follows the quoted header: eight bytes of it at least (RFC 792).
const TRANSPORT: usize = QUOTED + IPV4_LEN;
/// Offset of the checksum in an IPv4 header; the addresses follow it.
const IPV4_CHECKSUM: usize = offset_of!(Ipv4, checksum);
const IPV4_SOURCE: usize = offset_of!(Ipv4, src);
const IPV4_DESTINATION: usize = offset_of!(Ipv4, dst);
/// Offset of the checksum in TCP, UDP and ICMP.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ECHO_CHECKSUM: usize = 2;
/// Offset of the identifier in ICMP.
const ECHO_ID: usize = 4;

/// Whether it is an error that speaks of a packet: destination unreachable, time exceeded,
/// parameter problem. Source quench is no more (RFC 6633), and containers take no redirects from
/// outside their network.
#[inline(always)]
const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// An ICMP packet from outside, if it is an error about a container's flow.
#[inline(always)]
pub fn receive(ctx: &TcContext, config: &Config, ip: &Ipv4, head: &Udp) -> Option<Outcome> {
    let [kind, _] = head.source.raw().to_ne_bytes();
    if !is_error(kind) || ip.is_fragment() {
        return None;
    }
    let quoted: Ipv4 = load(ctx, QUOTED).ok()?;
    let start: Udp = load(ctx, TRANSPORT).ok()?;
    check_ipv4(ip, ctx.len() - ETH_LEN as u32, is_gso(ctx)).ok()?;
    let is_whole = usize::from(ip.total_length.get()) >= TRANSPORT + ICMP_LEN - ETH_LEN;
    // What is quoted came from where the error was sent to.
    if !is_whole
        || quoted.version_ihl != 0x45
        || quoted.is_later_fragment()
        || quoted.saddr() != ip.daddr()
    {
        return None;
    }
    let (sport, dport) = match quoted.protocol {
        PROTO_TCP | PROTO_UDP => (start.source, start.dest),
        PROTO_ICMP if start.source.get() == ECHO_REQUEST => (start.length, Be16::ZERO),
        _ => return None,
    };
    if !config.is_outside_port(sport) {
        return None;
    }
    let work = work().ok()?;
    // An answer would have come this way.
    work.flow.key = ConntrackKey {
        saddr: quoted.daddr(),
        daddr: quoted.saddr(),
        sport: dport,
        dport: sport,
        vni: UNDERLAY_VNI,
        proto: quoted.protocol,
        scope: [0; 3],
    };
    work.flow.flags = 0;
    work.flow.transport = TRANSPORT as u16;
    if conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_UNMASQUERADE {
        return None;
    }
    Some(pass_on(ctx, ip, work))
}

#[inline(always)]
fn pass_on(ctx: &TcContext, ip: &Ipv4, work: &Work) -> Outcome {
    // A router outside cannot have an address of the container's network.
    if lookup(&NETWORKS, &work.entry.vni).is_some_and(|network| network.contains(ip.saddr())) {
        return Err(Reason::SpoofedInnerSource);
    }
    let (endpoint, gateway): (_, Mac) = destination(work)?;
    fallible::unpack(rewrite(ctx.skb.skb, work))?;
    deliver(ctx, &endpoint, gateway, Reason::ReturnedFromOutside)
}

#[inline(never)]
fn rewrite(skb: *mut __sk_buff, work: &Work) -> i64 {
    let ctx = TcContext::new(skb);
    fallible::pack(try_rewrite(&ctx, work).map(|()| 0))
}

/// Rewrites the quoted source, with the checksums that cover it, and the error's destination.
#[inline(always)]
fn try_rewrite(ctx: &TcContext, work: &Work) -> Result<(), Reason> {
    let (old, new) = (work.flow.key.daddr, work.entry.daddr);
    let address = checksum::diff32(old.raw(), new.raw());
    let port = checksum::diff16(work.flow.key.dport.raw(), work.entry.dport.raw());
    let quoted: Ipv4 = load(ctx, QUOTED)?;
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    let header = Be16::from_raw(checksum::apply(quoted.checksum.raw(), address));
    let header_changed = checksum::diff16(quoted.checksum.raw(), header.raw());
    let transport_changed = transport(ctx, &ip, work, (address, port))?;

    store(ctx, QUOTED + IPV4_CHECKSUM, &header)?;
    store(ctx, QUOTED + IPV4_SOURCE, &new)?;
    let all = checksum::fold(address + header_changed + transport_changed);
    ctx.skb
        .l4_csum_replace(ICMP_CHECKSUM, 0, u64::from(all), 0)
        .map_err(|_| Reason::RewriteRefused)?;
    store(
        ctx,
        ETH_LEN + IPV4_CHECKSUM,
        &Be16::from_raw(checksum::apply(ip.checksum.raw(), address)),
    )?;
    store_rehash::<Be32>(ctx, ETH_LEN + IPV4_DESTINATION, &new)
}

/// Rewrites the quoted port or identifier and its checksum, as far as it is quoted. Returns what
/// that adds to the sum over the error.
#[inline(always)]
fn transport(
    ctx: &TcContext,
    ip: &Ipv4,
    work: &Work,
    (address, port): (u64, u64),
) -> Result<u64, Reason> {
    let quotes = usize::from(ip.total_length.get()) + ETH_LEN - TRANSPORT;
    let (at, field, covered) = match work.flow.key.proto {
        PROTO_TCP => (TCP_CHECKSUM, 0, address + port),
        PROTO_UDP => (UDP_CHECKSUM, 0, address + port),
        _ => (ECHO_CHECKSUM, ECHO_ID, port),
    };
    store(ctx, TRANSPORT + field, &work.entry.dport)?;
    if quotes < at + 2 {
        return Ok(port);
    }
    let old: Be16 = load_at(ctx, TRANSPORT + at)?;
    let new = if work.flow.key.proto == PROTO_UDP {
        checksum::apply_udp(old.raw(), covered)
    } else {
        checksum::apply(old.raw(), covered)
    };
    store(ctx, TRANSPORT + at, &Be16::from_raw(new))?;
    Ok(port + checksum::diff16(old.raw(), new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_about_packets_are_looked_into() {
        let errors: Vec<u8> = (0..=255).filter(|kind| is_error(*kind)).collect();
        assert_eq!(errors, [3, 11, 12]);
    }

    #[test]
    fn offsets_are_those_of_the_rfcs() {
        assert_eq!((IPV4_CHECKSUM, IPV4_SOURCE, IPV4_DESTINATION), (10, 12, 16));
        assert_eq!((QUOTED, TRANSPORT), (42, 62));
    }
}
