//! `from_vxlan`: what the kernel's vxlan device has taken out of the tunnel. Nothing of it is the host's.

use aya_ebpf::programs::TcContext;
use overlay_common::{Reason, wire::Vxlan};

use crate::{
    observe::Party,
    outcome::{Outcome, Stop},
    packet::frame::pull,
    tunnel::{
        fallback,
        peers::{self, check_peer, vni_of},
    },
    walk::{decap, host4::HEADERS},
};

/// A frame without outer headers.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, HEADERS);
    let (vni, sender) = fallback::origin(ctx)?;
    check_peer(sender)?;
    receiver.vni = vni_of(&Vxlan::new(vni))?;
    // The device has combined the marks of RFC 6040.
    match decap::accept(ctx, (sender, 0), 0, receiver) {
        Ok(verdict) => Ok(verdict),
        Err(Stop::Drop(reason)) => Err(peers::classify(receiver.vni, sender, reason)),
        // There are no outer headers that it could remove.
        Err(Stop::ToKernel) => Err(Reason::TunnelRefused),
    }
}
