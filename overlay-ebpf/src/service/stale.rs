//! Packets of connections that were given their backend at once (`spaces.rs`) and have outlived it: they
//! are sent to its own address, which nobody has any more.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Mac, Reason,
    maps::{EndpointKey, GONE_RESETS},
    wire::{Ipv4, PROTO_TCP},
};

use crate::{
    answer::{reject, reject6},
    forward::back_out,
    maps::{GONE, addr6_id, lookup, work::work},
    outcome::{self, Outcome},
    packet::{flow6, frame::ETH_LEN},
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
    reject::reset_gone(ctx)
}

/// Whether a container's IPv6 packet was to a backend that is gone: sockets send to the MAC that they have
/// learned, which says the backend's IPv4 address.
#[inline(always)]
pub fn is_known6(vni: u32, to: Mac) -> bool {
    GONE.get_ptr(&EndpointKey { vni, ip: addr6_id::ipv4_of(to) }).is_some()
}

/// As [`answer`], for a TCP packet over IPv6 that is in `work.ipv6`.
///
/// # Errors
/// Those of [`answer`].
#[inline(always)]
pub fn answer6(ctx: &TcContext) -> Outcome {
    outcome::unpack(answer6_packed(ctx.skb.skb))?;
    Ok(back_out(ctx, Reason::BackendGoneAnswered))
}

#[inline(never)]
fn answer6_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(reset6(&TcContext::new(skb)).map(|()| 0))
}

#[inline(always)]
fn reset6(ctx: &TcContext) -> Result<(), Reason> {
    let work = work()?;
    let key =
        EndpointKey { vni: work.ipv6.link.vni, ip: addr6_id::ipv4_of(work.ipv6.ethernet.dst) };
    let flags = lookup(&GONE, &key).ok_or(Reason::NoEndpoint)?;
    if flags & GONE_RESETS == 0 || flow6::read(ctx, ETH_LEN).is_err() {
        return Err(Reason::BackendGone);
    }
    reject6::reset_gone(ctx)
}
