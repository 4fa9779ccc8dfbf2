//! Reading and writing the bytes of a TC packet.

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_F_INVALIDATE_HASH, helpers::bpf_skb_load_bytes, programs::TcContext};
use overlay_common::{
    Plain, Reason,
    wire::{Ethernet, Ipv4, Ipv6, PROTO_TCP, PROTO_UDP, Udp},
};

use crate::packet::transport::TCP_FLAGS;

/// Length of an Ethernet header.
pub const ETH_LEN: usize = size_of::<Ethernet>();
/// `__sk_buff::pkt_type`: the packet is for this host.
const PACKET_HOST: u32 = 0;

/// Makes the first `length` bytes directly readable, as far as the packet has them.
#[inline(always)]
pub fn pull(ctx: &TcContext, length: u32) {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    // A packet shorter than `length` stays short: `load` checks the length.
    if linear < length && linear < ctx.len() {
        let _ = ctx.pull_data(if ctx.len() < length { ctx.len() } else { length });
    }
}

/// Reads a header at `offset` bytes from the start of the Ethernet header.
#[inline(always)]
pub fn load<T: Plain>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return Err(Reason::Truncated);
    }
    Ok(read(start as *const T))
}

/// Reads a header in the packet. The kernel puts frames at even addresses and all our headers have
/// even lengths. So the compiler needs no loads of single bytes, which it makes for unknown
/// alignments.
#[inline(always)]
pub fn read<T: Plain>(header: *const T) -> T {
    const { assert!(align_of::<T>() <= 2, "headers are at even addresses, no more") };
    // SAFETY: the callers checked the bounds, any bit pattern is a valid `T`, and frames are at
    // even addresses.
    unsafe { header.read() }
}

/// As [`load`] for an offset that is not a constant: it copies, without direct access.
#[inline(always)]
pub fn load_at<T: Plain>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    ctx.load(offset).map_err(|_| Reason::Truncated)
}

/// As [`load_at`], into memory other than the stack. A header that is read as a value would be
/// copied byte by byte, because its alignment is unknown.
#[inline(always)]
pub fn load_into<T: Plain>(ctx: &TcContext, offset: usize, out: &mut T) -> Result<(), Reason> {
    let (skb, length) = (ctx.skb.skb.cast(), size_of::<T>() as u32);
    // SAFETY: the memory is a whole `T`, for which any bit pattern is valid.
    match unsafe { bpf_skb_load_bytes(skb, offset as u32, (&raw mut *out).cast(), length) } {
        0 => Ok(()),
        _ => Err(Reason::Truncated),
    }
}

/// Writes a header. The caller updates checksums.
#[inline(always)]
pub fn store<T: Plain>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), Reason> {
    ctx.skb.store(offset, value, 0).map_err(|_| Reason::RewriteRefused)
}

/// As [`store`], and clears the flow hash of the old headers.
#[inline(always)]
pub fn store_rehash<T: Plain>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), Reason> {
    let flags = u64::from(BPF_F_INVALIDATE_HASH);
    ctx.skb.store(offset, value, flags).map_err(|_| Reason::RewriteRefused)
}

/// Index of the interface that the packet arrived on.
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Whether the packet has a VLAN tag outside its data.
#[inline(always)]
pub fn has_vlan_tag(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Length in bytes of the packet's VLAN tag on the wire; 0 without one.
#[inline(always)]
pub fn vlan_tag_length(ctx: &TcContext) -> u32 {
    if has_vlan_tag(ctx) { 4 } else { 0 }
}

/// Rejects a packet with a VLAN tag where tags have no meaning.
///
/// # Errors
/// [`Reason::UnsupportedProtocol`] for a packet with a tag.
#[inline(always)]
pub fn reject_vlan_tag(ctx: &TcContext) -> Result<(), Reason> {
    if has_vlan_tag(ctx) { Err(Reason::UnsupportedProtocol) } else { Ok(()) }
}

/// Whether the packet is an aggregate of segments.
#[inline(always)]
pub fn is_gso(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

/// Marks the packet as one for the receiving host. A container's frame carries the MAC of another
/// container, so the kernel has marked it as one for another host.
#[inline(always)]
pub fn mark_for_host(ctx: &TcContext) {
    // SAFETY: as above.
    if unsafe { (*ctx.skb.skb).pkt_type } != PACKET_HOST {
        let _ = ctx.change_type(PACKET_HOST);
    }
}

/// Length in bytes of the longest IP packet on the wire, with its IPv4 or IPv6 header at `offset`:
/// the packet itself, or a segment of an aggregate.
#[inline(always)]
pub fn longest(ctx: &TcContext, offset: usize) -> u32 {
    // SAFETY: as above.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return ctx.len() - offset as u32;
    }
    // If the headers cannot be read, the packet does not count as too long.
    segment + headers_length(ctx, offset).unwrap_or(0)
}

/// Length of the IP and transport headers that every segment of an aggregate has.
#[inline(always)]
fn headers_length(ctx: &TcContext, offset: usize) -> Result<u32, Reason> {
    let ip: Ipv4 = load(ctx, offset)?;
    let (header, protocol) = if ip.version_ihl >> 4 == 6 {
        (size_of::<Ipv6>(), load(ctx, offset + offset_of!(Ipv6, next_header))?)
    } else {
        (usize::from(ip.version_ihl & 0xf) * 4, ip.protocol)
    };
    let transport = match protocol {
        PROTO_TCP => {
            let data_offset: u8 = load_at(ctx, offset + header + TCP_FLAGS - 1)?;
            usize::from(data_offset >> 4) * 4
        }
        PROTO_UDP => size_of::<Udp>(),
        _ => 0,
    };
    Ok((header + transport) as u32)
}
