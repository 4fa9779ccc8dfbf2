//! Packets of connections that were given their backend at once (`spaces.rs`) and have outlived it: they
//! are sent to its own address, which nobody has any more.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    maps::{EndpointKey, GONE_RESETS},
    wire::{Ipv4, PROTO_TCP},
};

use crate::{
    Outcome,
    maps::{GONE, lookup},
    refuse,
};

/// What becomes of a container's packet to an address of network `vni` that nobody has.
///
/// # Errors
/// [`Reason::NoEndpoint`], and [`Reason::BackendGone`] for TCP to a backend that was there, where the client is
/// not told.
#[inline(always)]
pub fn answer(ctx: &TcContext, vni: u32, ip: &Ipv4) -> Outcome {
    if ip.protocol != PROTO_TCP {
        return Err(Reason::NoEndpoint);
    }
    let key = EndpointKey { vni, ip: ip.daddr() };
    let flags = lookup(&GONE, &key).ok_or(Reason::NoEndpoint)?;
    if flags & GONE_RESETS == 0 {
        return Err(Reason::BackendGone);
    }
    refuse::reset_gone(ctx)
}
