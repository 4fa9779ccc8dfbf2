//! `from_vxlan`: frames that the kernel's vxlan device has decapsulated. None of them goes to the
//! host.

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

/// Handles a frame without outer headers.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, HEADERS);
    let (vni, sender) = fallback::origin(ctx)?;
    check_peer(sender)?;
    receiver.vni = vni_of(&Vxlan::new(vni))?;
    // The device has combined the ECN marks (RFC 6040).
    match decap::accept(ctx, (sender, 0), 0, receiver) {
        Ok(verdict) => Ok(verdict),
        Err(Stop::Drop(reason)) => Err(peers::classify(receiver.vni, sender, reason)),
        // There are no outer headers for the kernel to remove.
        Err(Stop::ToKernel) => Err(Reason::TunnelRefused),
    }
}
