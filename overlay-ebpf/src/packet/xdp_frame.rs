//! Reading and writing the bytes of an XDP packet.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};
use overlay_common::{Plain, Reason, wire::Ethernet};

use crate::packet::frame;

/// A pointer to a header in the packet, valid until the packet's size changes.
#[inline(always)]
pub fn at<T: Plain>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() { None } else { Some(start as *mut T) }
}

/// A header in the packet; `None` if the packet is too short.
#[inline(always)]
pub fn read<T: Plain>(ctx: &XdpContext, offset: usize) -> Option<T> {
    at::<T>(ctx, offset).map(|header| frame::read(header.cast_const()))
}

/// Writes a header into the packet.
///
/// # Errors
/// [`Reason::RewriteRefused`] if the packet is too short.
#[inline(always)]
pub fn write<T: Plain>(ctx: &XdpContext, offset: usize, value: T) -> Result<(), Reason> {
    let header = at::<T>(ctx, offset).ok_or(Reason::RewriteRefused)?;
    const { assert!(align_of::<T>() <= 2, "headers are at even addresses, no more") };
    // SAFETY: `at` checked the bounds, and frames are at even addresses (`frame::read`).
    unsafe { header.write(value) };
    Ok(())
}

/// Copies a header from the packet to memory of a map. Returns `false` if the packet is too short.
#[inline(always)]
pub fn load_into<T: Plain>(ctx: &XdpContext, offset: usize, out: &mut T) -> bool {
    let length = size_of::<T>() as u32;
    // SAFETY: the memory is a whole `T`, for which any bit pattern is valid (Linux 5.18).
    unsafe { bpf_xdp_load_bytes(ctx.ctx, offset as u32, (&raw mut *out).cast(), length) == 0 }
}

/// Copies a value from memory of a map to the packet.
///
/// # Errors
/// [`Reason::RewriteRefused`] if the packet is too short.
#[inline(always)]
pub fn store<T: Plain>(ctx: &XdpContext, offset: usize, value: &T) -> Result<(), Reason> {
    let from = (&raw const *value).cast_mut().cast();
    // SAFETY: the memory is a whole `T`, which the kernel only reads (Linux 5.18).
    match unsafe { bpf_xdp_store_bytes(ctx.ctx, offset as u32, from, size_of::<T>() as u32) } {
        0 => Ok(()),
        _ => Err(Reason::RewriteRefused),
    }
}

/// Length of the packet in bytes.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> u32 {
    (ctx.data_end() - ctx.data()) as u32
}

/// Makes room for `bytes` in front of the packet, or removes as many bytes if negative.
///
/// # Errors
/// [`Reason::TunnelRefused`] without head-room.
#[inline(always)]
pub fn push(ctx: &XdpContext, bytes: i32) -> Result<(), Reason> {
    // SAFETY: the context is the program's own.
    match unsafe { bpf_xdp_adjust_head(ctx.ctx, -bytes) } {
        0 => Ok(()),
        _ => Err(Reason::TunnelRefused),
    }
}

/// Whether the Ethernet header at `offset` has `ethertype`.
#[inline(always)]
pub fn is_of(ctx: &XdpContext, offset: usize, ethertype: u16) -> bool {
    read::<Ethernet>(ctx, offset).is_some_and(|ethernet| ethernet.ethertype.get() == ethertype)
}

/// Sends the packet out of an interface: the one that it arrived on, or another one.
#[inline(always)]
pub fn send(ctx: &XdpContext, ifindex: u32) -> i32 {
    if ifindex as usize == ctx.ingress_ifindex() {
        return xdp_action::XDP_TX as i32;
    }
    // SAFETY: a helper without preconditions.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}
