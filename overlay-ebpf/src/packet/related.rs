//! ICMP errors about translated flows. The quoted packet is translated where the error is made, and
//! the error's receiver must see it as it sent it (RFC 5508, section 4.2).
//!
//! An error travels with the packets that answer the quoted one, so it belongs to their flow. The
//! entry that translates them describes the changes in the quoted packet too.

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be16, Be32, Reason, checksum,
    maps::{CONNTRACK_MASQUERADE, CONNTRACK_REPLY, Conntrack, ConntrackKey},
    wire::{Ipv4, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, Udp},
};

use crate::{
    maps::work::{Flow, PART_QUOTED, Work, scratch},
    outcome,
    packet::{
        frame::{ETH_LEN, load_at, store, store_rehash},
        ipv4::{ECHO_REQUEST, IPV4_LEN},
        transport::has_ports,
    },
};

/// Length of the header of an ICMP error.
const ICMP_LEN: usize = 8;
/// Offset of the ICMP header.
const ICMP: usize = ETH_LEN + IPV4_LEN;
/// Offset of the checksum in the ICMP header.
const ICMP_CHECKSUM: usize = ICMP + 2;
/// Offset of the quoted IPv4 header.
const QUOTED: usize = ICMP + ICMP_LEN;
/// Offset of the quoted transport header; the quote has at least eight bytes of it (RFC 792).
const TRANSPORT: usize = QUOTED + IPV4_LEN;
/// The shortest total length of an error from which the flow can be read.
const SHORTEST: usize = TRANSPORT + 8 - ETH_LEN;
/// Offset of the checksum in an IPv4 header; the addresses follow it.
const IPV4_CHECKSUM: usize = offset_of!(Ipv4, checksum);
const IPV4_SOURCE: usize = offset_of!(Ipv4, src);
/// Offset of the checksum in TCP, UDP and ICMP.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ECHO_CHECKSUM: usize = 2;
/// Offset of the identifier in ICMP.
const ECHO_ID: usize = 4;

/// Whether it is an error about a packet: destination unreachable, time exceeded, parameter
/// problem. Source quench is obsolete (RFC 6633), and redirects are for a sender's own network.
#[inline(always)]
const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// Fills `out` with the flow of an ICMP error with its IPv4 header at `offset`, on network `vni`:
/// that of the answers to the quoted packet.
///
/// # Errors
/// [`Reason::ServiceProtocol`] for other packets, [`Reason::UnrelatedError`] for an error without a
/// flow.
#[inline(always)]
pub fn flow(ctx: &TcContext, offset: usize, vni: u32, out: &mut Flow) -> Result<(), Reason> {
    outcome::unpack(quoted_flow_packed(ctx.skb.skb, offset as u32, vni))?;
    out.key = scratch()?.quoted;
    out.transport = TRANSPORT as u16;
    out.flags = 0;
    out.part = PART_QUOTED;
    Ok(())
}

/// Leaves the tuple in the scratch area.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn quoted_flow_packed(skb: *mut __sk_buff, offset: u32, vni: u32) -> i64 {
    // Headers are near the start of the packet. The mask shows that to the verifier in this
    // separate function.
    let offset = (offset & 0xff) as usize;
    outcome::pack(quoted_flow(&TcContext::new(skb), offset, vni).map(|()| 0))
}

#[inline(always)]
fn quoted_flow(ctx: &TcContext, offset: usize, vni: u32) -> Result<(), Reason> {
    let at = |field: usize| offset + field - ETH_LEN;
    let ip: Ipv4 = load_at(ctx, offset)?;
    let kind: u8 = load_at(ctx, at(ICMP))?;
    let is_one = ip.version_ihl == 0x45
        && ip.protocol == PROTO_ICMP
        && !ip.is_fragment()
        && usize::from(ip.total_length.get()) >= SHORTEST
        && is_error(kind);
    if !is_one {
        return Err(Reason::ServiceProtocol);
    }
    let quoted: Ipv4 = load_at(ctx, at(QUOTED))?;
    let start: Udp = load_at(ctx, at(TRANSPORT))?;
    // The error goes to the source of the quoted packet.
    if quoted.version_ihl != 0x45 || quoted.is_later_fragment() || quoted.saddr() != ip.daddr() {
        return Err(Reason::UnrelatedError);
    }
    let (sport, dport) = if has_ports(quoted.protocol) {
        (start.source, start.dest)
    } else if quoted.protocol == PROTO_ICMP && start.source.get() == ECHO_REQUEST {
        (start.length, Be16::ZERO)
    } else {
        return Err(Reason::UnrelatedError);
    };
    scratch()?.quoted = ConntrackKey {
        saddr: quoted.daddr(),
        daddr: quoted.saddr(),
        sport: dport,
        dport: sport,
        vni,
        proto: quoted.protocol,
        scope: [0; 3],
    };
    Ok(())
}

/// Rewrites an error with its IPv4 header directly behind the Ethernet header from the tuple of
/// `work.flow` to that of `work.entry`. It rewrites the quoted packet in the opposite direction,
/// the checksums over the changed bytes, and the error's own addresses. `checksum` is the checksum
/// of the error's header; it may be newer than the one in the packet.
///
/// # Errors
/// [`Reason::RewriteRefused`] and [`Reason::Truncated`].
#[inline(always)]
pub fn rewrite(ctx: &TcContext, checksum: Be16, work: &Work) -> Result<(), Reason> {
    let Work { flow: Flow { key, .. }, entry, .. } = work;
    let address = checksum::diff32(key.daddr.raw(), entry.daddr.raw())
        + checksum::diff32(key.saddr.raw(), entry.saddr.raw());
    let ip: Ipv4 = load_at(ctx, ETH_LEN)?;
    let old: Be16 = load_at(ctx, QUOTED + IPV4_CHECKSUM)?;
    let header = Be16::from_raw(checksum::apply(old.raw(), address));
    let header_changed = checksum::diff16(old.raw(), header.raw());
    let transport_changed = transport(ctx, &ip, work, address)?;

    store(ctx, QUOTED + IPV4_CHECKSUM, &header)?;
    store(ctx, QUOTED + IPV4_SOURCE, &[entry.daddr, entry.saddr])?;
    let all = checksum::fold(address + header_changed + transport_changed);
    ctx.skb
        .l4_csum_replace(ICMP_CHECKSUM, 0, u64::from(all), 0)
        .map_err(|_| Reason::RewriteRefused)?;
    let ip = Ipv4 { checksum, ..ip };
    readdress(ctx, &ip, source(&ip, key, entry), entry.daddr)
}

/// The source of the error after translation. A client sees the frontend's address only, and hosts
/// outside see this host's address only. Backends and containers see the address of a router on the
/// way.
#[inline(always)]
fn source(ip: &Ipv4, key: &ConntrackKey, entry: &Conntrack) -> Be32 {
    let hides = entry.action == CONNTRACK_REPLY || entry.action == CONNTRACK_MASQUERADE;
    if hides || ip.saddr() == key.saddr { entry.saddr } else { ip.saddr() }
}

#[inline(always)]
fn readdress(ctx: &TcContext, ip: &Ipv4, src: Be32, dst: Be32) -> Result<(), Reason> {
    let changed = checksum::diff32(ip.saddr().raw(), src.raw())
        + checksum::diff32(ip.daddr().raw(), dst.raw());
    let checksum = Be16::from_raw(checksum::apply(ip.checksum.raw(), changed));
    store(ctx, ETH_LEN + IPV4_CHECKSUM, &checksum)?;
    store_rehash(ctx, ETH_LEN + IPV4_SOURCE, &[src, dst])
}

/// Rewrites the quoted ports or identifier, and their checksum if it is quoted. Returns the change
/// of the sum over the error.
#[inline(always)]
fn transport(ctx: &TcContext, ip: &Ipv4, work: &Work, address: u64) -> Result<u64, Reason> {
    let Work { flow: Flow { key, .. }, entry, .. } = work;
    let port = checksum::diff16(key.dport.raw(), entry.dport.raw())
        + checksum::diff16(key.sport.raw(), entry.sport.raw());
    let (at, covered) = match key.proto {
        PROTO_TCP => (TCP_CHECKSUM, address + port),
        PROTO_UDP => (UDP_CHECKSUM, address + port),
        // The ports stay the same, and the checksum covers no address.
        PROTO_SCTP => return Ok(0),
        _ => (ECHO_CHECKSUM, port),
    };
    if key.proto == PROTO_ICMP {
        let id = Be16::from_raw(entry.sport.raw() | entry.dport.raw());
        store(ctx, TRANSPORT + ECHO_ID, &id)?;
    } else {
        store(ctx, TRANSPORT, &[entry.dport, entry.sport])?;
    }
    if usize::from(ip.total_length.get()) + ETH_LEN < TRANSPORT + at + 2 {
        return Ok(port);
    }
    let old: Be16 = load_at(ctx, TRANSPORT + at)?;
    let new = if key.proto == PROTO_UDP {
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
        assert_eq!((IPV4_CHECKSUM, IPV4_SOURCE), (10, 12));
        assert_eq!((QUOTED, TRANSPORT, SHORTEST), (42, 62, 56));
    }
}
