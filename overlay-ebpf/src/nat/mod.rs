//! Rewriting addresses and ports of a TC packet, checksums included.
//!
//! A container's packet mostly has no checksum yet (CHECKSUM_PARTIAL), so that only the
//! pseudo-header's part may be updated. The kernel's checksum helpers take care of that.

pub mod rewrite6;

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use network_types::{icmp::Icmpv4Hdr, tcp::TcpHdr, udp::UdpHdr};
use overlay_common::{
    Be16, Reason, checksum,
    maps::Conntrack,
    wire::{Ipv4, PROTO_ICMP, PROTO_SCTP, PROTO_TCP},
};

use crate::{
    maps::work::{PART_LATER, PART_QUOTED, Work},
    outcome,
    packet::{
        frame::{ETH_LEN, load, store, store_rehash},
        related,
    },
};

/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = offset_of!(TcpHdr, check);
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = offset_of!(UdpHdr, check);
/// Offset of the checksum in an ICMP header.
const ECHO_CHECKSUM: usize = offset_of!(Icmpv4Hdr, check);
/// Offset of the identifier in the header of an ICMP echo.
const ECHO_ID: usize = offset_of!(Icmpv4Hdr, data);
/// Offset of the checksum in an IPv4 header; the two addresses follow it.
const IPV4_CHECKSUM: usize = offset_of!(Ipv4, checksum);

/// Checksum, source and destination, which are adjacent in an IPv4 header.
type Addresses = [u8; 10];

/// Rewrites the packet from the tuple of `work.flow` to that of `work.entry`; for an ICMP error
/// also the packet that it quotes. The IPv4 header `ip` is directly behind the Ethernet header, and
/// the transport header is at `transport`.
///
/// # Errors
/// [`Reason::RewriteRefused`] if the packet ends before its checksum, or the kernel refuses.
#[inline(always)]
pub fn translate(ctx: &TcContext, ip: &Ipv4, transport: usize, work: &Work) -> Result<(), Reason> {
    let packed = translate_packed(ctx.skb.skb, ip.checksum, transport, work);
    outcome::unpack(packed).map(|_| ())
}

/// Reverts a translation: an ICMP error must quote the packet as its sender sent it.
///
/// # Errors
/// Those of [`translate`].
#[inline(always)]
pub fn undo(ctx: &TcContext, transport: usize, work: &mut Work) -> Result<(), Reason> {
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    let Work { flow, entry, .. } = work;
    let key = &mut flow.key;
    core::mem::swap(&mut key.saddr, &mut entry.saddr);
    core::mem::swap(&mut key.daddr, &mut entry.daddr);
    core::mem::swap(&mut key.sport, &mut entry.sport);
    core::mem::swap(&mut key.dport, &mut entry.dport);
    translate(ctx, &ip, transport, work)
}

#[inline(never)]
fn translate_packed(skb: *mut __sk_buff, header: Be16, transport: usize, work: &Work) -> i64 {
    let ctx = TcContext::new(skb);
    let rewritten = if work.flow.part == PART_QUOTED {
        related::rewrite(&ctx, header, work)
    } else {
        rewrite(&ctx, header, transport, work)
    };
    outcome::pack(rewritten.map(|()| 0))
}

#[inline(always)]
fn rewrite(ctx: &TcContext, header: Be16, transport: usize, work: &Work) -> Result<(), Reason> {
    let Work { flow, entry, .. } = work;
    let key = &flow.key;
    let addresses = checksum::diff32(key.saddr.raw(), entry.saddr.raw())
        + checksum::diff32(key.daddr.raw(), entry.daddr.raw());
    // A later fragment has no transport header. SCTP's checksum covers no address, and its ports
    // stay the same.
    let is_plain = flow.part == PART_LATER || key.proto == PROTO_SCTP;
    if is_plain || key.proto == PROTO_ICMP {
        if !is_plain {
            rewrite_echo(ctx, transport, work)?;
        }
        let header = checksum::apply(header.raw(), addresses);
        return store_rehash(ctx, ETH_LEN + IPV4_CHECKSUM, &address_bytes(header, entry));
    }
    let (offset, flags) = if key.proto == PROTO_TCP {
        (transport + TCP_CHECKSUM, 0)
    } else {
        (transport + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    };
    // With a size of 0 in the flags the third argument is a difference, not a new value.
    let pseudo = flags | u64::from(BPF_F_PSEUDO_HDR);
    let refused = |_| Reason::RewriteRefused;
    ctx.skb
        .l4_csum_replace(offset, 0, u64::from(checksum::fold(addresses)), pseudo)
        .map_err(refused)?;
    if (key.sport, key.dport) != (entry.sport, entry.dport) {
        let ports = checksum::diff16(key.sport.raw(), entry.sport.raw())
            + checksum::diff16(key.dport.raw(), entry.dport.raw());
        ctx.skb
            .l4_csum_replace(offset, 0, u64::from(checksum::fold(ports)), flags)
            .map_err(refused)?;
        store(ctx, transport, &port_bytes(entry.sport, entry.dport))?;
    }
    let header = checksum::apply(header.raw(), addresses);
    store_rehash(ctx, ETH_LEN + IPV4_CHECKSUM, &address_bytes(header, entry))
}

/// Rewrites the identifier of an ICMP echo; its checksum covers no address. One of the two ports of
/// each tuple is zero.
#[inline(always)]
fn rewrite_echo(ctx: &TcContext, transport: usize, work: &Work) -> Result<(), Reason> {
    let either = |a: Be16, b: Be16| Be16::from_raw(a.raw() | b.raw());
    let old = either(work.flow.key.sport, work.flow.key.dport);
    let new = either(work.entry.sport, work.entry.dport);
    ctx.skb
        .l4_csum_replace(
            transport + ECHO_CHECKSUM,
            u64::from(old.raw()),
            u64::from(new.raw()),
            size_of::<Be16>() as u64,
        )
        .map_err(|_| Reason::RewriteRefused)?;
    store(ctx, transport + ECHO_ID, &new)
}

#[inline(always)]
fn port_bytes(sport: Be16, dport: Be16) -> [u8; 4] {
    let [a, b] = sport.raw().to_ne_bytes();
    let [c, d] = dport.raw().to_ne_bytes();
    [a, b, c, d]
}

#[inline(always)]
fn address_bytes(checksum: u16, entry: &Conntrack) -> Addresses {
    let [a, b] = checksum.to_ne_bytes();
    let [c, d, e, f] = entry.saddr.octets();
    let [g, h, i, j] = entry.daddr.octets();
    [a, b, c, d, e, f, g, h, i, j]
}
