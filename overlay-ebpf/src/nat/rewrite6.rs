//! Rewriting addresses and ports of an IPv6 packet, as `nat` does for IPv4. The header has no
//! checksum. The addresses are in the work area, because the stack has no room for them.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_csum_update,
    programs::TcContext,
};
use overlay_common::{
    Be16, Ip6, Reason, checksum,
    maps::CONNTRACK_REPLY,
    wire::{Ipv6, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use crate::{
    maps::{
        addr6_id,
        work::{Ipv6Work, PART_LATER, PART_QUOTED, Work, work},
    },
    nat::{TCP_CHECKSUM, UDP_CHECKSUM},
    outcome,
    packet::{
        flow6::FARTHEST,
        frame::{ETH_LEN, load_at, load_into, store, store_rehash},
        ipv6::{ICMPV6, IPV6_LEN},
    },
};

/// Offset of the addresses, source first.
const ADDRESSES: usize = ETH_LEN + offset_of!(Ipv6, src);
/// Offset of the checksum in an ICMPv6 error right behind its IPv6 header.
const ICMP6_CHECKSUM: usize = ICMPV6 + 2;
/// Offset of the quoted IPv6 header.
const QUOTED: usize = ICMPV6 + 8;
/// Offset of the quoted transport header.
const QUOTED_TRANSPORT: usize = QUOTED + IPV6_LEN;

/// The bits of an offset of a transport header.
const TRANSPORT_MASK: usize = 0x3ff;
const _: () = assert!(FARTHEST <= TRANSPORT_MASK);

/// Rewrites the packet from the tuple of `work.flow` to that of `work.entry`; for an ICMPv6 error
/// also the packet that it quotes. The IPv6 header is directly behind the Ethernet header and in
/// `work.ipv6.ip`, which has the new addresses afterwards. The transport header is at `transport`.
///
/// # Errors
/// [`Reason::NoEndpoint`] if an id of the entry is no longer known. [`Reason::RewriteRefused`] if
/// the packet ends before its checksum, or the kernel refuses.
#[inline(always)]
pub fn translate(ctx: &TcContext, transport: usize) -> Result<(), Reason> {
    outcome::unpack(translate6_packed(ctx.skb.skb, transport as u32)).map(|_| ())
}

/// Reverts a translation: an ICMPv6 error must quote the packet as its sender sent it.
///
/// # Errors
/// Those of [`translate`].
#[inline(always)]
pub fn undo(ctx: &TcContext, transport: usize) -> Result<(), Reason> {
    let Work { flow, entry, ipv6, .. } = work()?;
    let key = &mut flow.key;
    core::mem::swap(&mut key.saddr, &mut entry.saddr);
    core::mem::swap(&mut key.daddr, &mut entry.daddr);
    core::mem::swap(&mut key.sport, &mut entry.sport);
    core::mem::swap(&mut key.dport, &mut entry.dport);
    core::mem::swap(&mut key.vni, &mut entry.vni);
    load_into(ctx, ETH_LEN, &mut ipv6.ip)?;
    translate(ctx, transport)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn translate6_packed(skb: *mut __sk_buff, transport: u32) -> i64 {
    let ctx = TcContext::new(skb);
    // Headers are near the start of the packet. The mask shows that to the verifier in this
    // separate function.
    let transport = transport as usize & TRANSPORT_MASK;
    let done = resolve().and_then(|()| {
        if work()?.flow.part == PART_QUOTED {
            rewrite_error(&ctx)
        } else {
            rewrite(&ctx, transport)
        }
    });
    outcome::pack(done.map(|()| 0))
}

/// Leaves the addresses after translation in `work.ipv6.new`.
///
/// # Errors
/// [`Reason::NoEndpoint`] if an id of the entry is no longer known.
#[inline(always)]
pub fn resolve() -> Result<(), Reason> {
    let Work { flow, entry, ipv6, .. } = work()?;
    let Ipv6Work { ip, quoted, new, .. } = ipv6;
    // A quoted packet goes in the opposite direction.
    let (source, dest) =
        if flow.part == PART_QUOTED { (&quoted.dst, &quoted.src) } else { (&ip.src, &ip.dst) };
    new[0] = *source;
    new[1] = *dest;
    if entry.saddr != flow.key.saddr {
        new[0] = *addr6_id::address(entry.vni, entry.saddr).ok_or(Reason::NoEndpoint)?;
    }
    if entry.daddr != flow.key.daddr {
        new[1] = *addr6_id::address(entry.vni, entry.daddr).ok_or(Reason::NoEndpoint)?;
    }
    Ok(())
}

/// The change of a sum when an address is replaced.
#[inline(always)]
pub fn difference(old: &Ip6, new: &Ip6) -> u64 {
    checksum::diff16(checksum::fold(old.sum()), checksum::fold(new.sum()))
}

#[inline(always)]
fn rewrite(ctx: &TcContext, transport: usize) -> Result<(), Reason> {
    let Work { flow, entry, ipv6, .. } = work()?;
    let Ipv6Work { ip, new, .. } = ipv6;
    let key = &flow.key;
    // A later fragment has no transport header, and SCTP's checksum covers no address.
    if flow.part != PART_LATER && key.proto != PROTO_SCTP {
        let addresses = difference(&ip.src, &new[0]) + difference(&ip.dst, &new[1]);
        let (at, flags) = if key.proto == PROTO_TCP {
            (transport + TCP_CHECKSUM, 0)
        } else {
            (transport + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
        };
        replace(ctx, at, addresses, flags | u64::from(BPF_F_PSEUDO_HDR))?;
        if (key.sport, key.dport) != (entry.sport, entry.dport) {
            let ports = checksum::diff16(key.sport.raw(), entry.sport.raw())
                + checksum::diff16(key.dport.raw(), entry.dport.raw());
            replace(ctx, at, ports, flags)?;
            store(ctx, transport, &[entry.sport, entry.dport])?;
        }
    }
    ip.src = new[0];
    ip.dst = new[1];
    store_rehash(ctx, ADDRESSES, new)
}

/// Updates the checksum at `at` by a difference.
#[inline(always)]
fn replace(ctx: &TcContext, at: usize, sum: u64, flags: u64) -> Result<(), Reason> {
    let sum = u64::from(checksum::fold(sum));
    // With a size of 0 in the flags the third argument is a difference, not a new value.
    ctx.skb.l4_csum_replace(at, 0, sum, flags).map_err(|_| Reason::RewriteRefused)?;
    if flags & u64::from(BPF_F_PSEUDO_HDR) != 0 {
        // If the NIC has given the sum over the whole packet, the kernel subtracts this difference
        // from it. That is right for IPv4 only, where the header's checksum makes up for it (fixed
        // by a flag in Linux 6.16).
        // SAFETY: the context is the program's own. Without such a sum this changes nothing.
        unsafe { bpf_csum_update(ctx.skb.skb, sum as u32) };
    }
    Ok(())
}

/// As `related::rewrite`: rewrites the quoted packet in the opposite direction, the checksum over
/// the changed bytes, and the error's own addresses.
#[inline(always)]
fn rewrite_error(ctx: &TcContext) -> Result<(), Reason> {
    let Work { flow, entry, ipv6, .. } = work()?;
    let Ipv6Work { ip, quoted, new, .. } = ipv6;
    let key = &flow.key;
    let addresses = difference(&quoted.dst, &new[0]) + difference(&quoted.src, &new[1]);
    let ports = checksum::diff16(key.dport.raw(), entry.dport.raw())
        + checksum::diff16(key.sport.raw(), entry.sport.raw());
    // A client sees the frontend's address only. A backend sees the address of a router on the way.
    if entry.action != CONNTRACK_REPLY && ip.src != quoted.dst {
        new[0] = ip.src;
    }
    let own = difference(&ip.src, &new[0]) + difference(&ip.dst, &new[1]);

    let transport = transport(ctx, addresses, ports)?;
    replace(ctx, ICMP6_CHECKSUM, addresses + transport, 0)?;
    replace(ctx, ICMP6_CHECKSUM, own, u64::from(BPF_F_PSEUDO_HDR))?;
    // The ends of the quoted packet, for any source of the error.
    quoted.src = new[1];
    if entry.saddr != key.saddr {
        quoted.dst = *addr6_id::address(entry.vni, entry.saddr).ok_or(Reason::NoEndpoint)?;
    }
    store(ctx, QUOTED + offset_of!(Ipv6, src), &quoted.src)?;
    store(ctx, QUOTED + offset_of!(Ipv6, dst), &quoted.dst)?;
    ip.src = new[0];
    ip.dst = new[1];
    store_rehash(ctx, ADDRESSES, new)
}

/// Rewrites the quoted ports, and their checksum if it is quoted. Returns the change of the sum
/// over the error.
#[inline(always)]
fn transport(ctx: &TcContext, addresses: u64, ports: u64) -> Result<u64, Reason> {
    let Work { flow, entry, ipv6, .. } = work()?;
    let at = match flow.key.proto {
        PROTO_TCP => TCP_CHECKSUM,
        PROTO_UDP => UDP_CHECKSUM,
        // SCTP's ports stay the same, and its checksum covers no address.
        _ => return Ok(0),
    };
    store(ctx, QUOTED_TRANSPORT, &[entry.dport, entry.sport])?;
    let end = ICMPV6 + usize::from(ipv6.ip.payload_length.get());
    if end < QUOTED_TRANSPORT + at + size_of::<Be16>() {
        return Ok(ports);
    }
    let old: Be16 = load_at(ctx, QUOTED_TRANSPORT + at)?;
    let new = checksum::apply(old.raw(), addresses + ports);
    // Over IPv6 a UDP checksum is never zero (RFC 8200, section 8.1).
    let new = if new == 0 && flow.key.proto == PROTO_UDP { 0xffff } else { new };
    store(ctx, QUOTED_TRANSPORT + at, &Be16::from_raw(new))?;
    Ok(ports + checksum::diff16(old.raw(), new))
}
