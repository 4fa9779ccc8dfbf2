//! Delivers packets to endpoints of this node, or sends them back out of their input interface.

use aya_ebpf::{
    helpers::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use overlay_common::{
    Be16, Mac, Reason,
    maps::{Backend, ENDPOINT_FLAG_HOST, ENDPOINT_LOCAL, Endpoint},
    wire::{ETHERTYPE_IPV4, Ethernet},
};

use crate::{
    outcome::{Outcome, Verdict},
    packet::frame::{ifindex, mark_for_host, store},
};

/// Delivers an IPv4 packet to a local endpoint, with `source` as Ethernet source.
///
/// # Errors
/// [`Reason::RewriteRefused`].
#[inline(always)]
pub fn deliver(ctx: &TcContext, endpoint: &Endpoint, source: Mac, reason: Reason) -> Outcome {
    deliver_as(ETHERTYPE_IPV4, ctx, endpoint, source, reason)
}

/// As [`deliver`], for a packet of any EtherType.
///
/// # Errors
/// Those of [`deliver`].
#[inline(always)]
pub fn deliver_as(
    ethertype: u16,
    ctx: &TcContext,
    endpoint: &Endpoint,
    source: Mac,
    reason: Reason,
) -> Outcome {
    let ethernet = Ethernet { dst: endpoint.mac, src: source, ethertype: Be16::new(ethertype) };
    store(ctx, 0, &ethernet)?;
    if endpoint.flags & ENDPOINT_FLAG_HOST != 0 {
        // Both ends of the host link are in this namespace, where redirect_peer refuses.
        // SAFETY: a helper without preconditions.
        let action = unsafe { bpf_redirect(endpoint.ifindex, 0) };
        return Ok(Verdict::delivered(action as i32, Reason::DeliveredHost, endpoint.counter));
    }
    mark_for_host(ctx);
    // SAFETY: a helper without preconditions.
    let action = unsafe { bpf_redirect_peer(endpoint.ifindex, 0) };
    Ok(Verdict::delivered(action as i32, reason, endpoint.counter))
}

/// As [`deliver_as`], to a backend on this node.
///
/// # Errors
/// Those of [`deliver`].
#[inline(always)]
pub fn deliver_backend_as(
    ethertype: u16,
    ctx: &TcContext,
    backend: &Backend,
    source: Mac,
) -> Outcome {
    let endpoint = Endpoint {
        kind: ENDPOINT_LOCAL,
        mac: backend.mac,
        ifindex: backend.ifindex,
        counter: backend.counter,
        ..Endpoint::default()
    };
    deliver_as(ethertype, ctx, &endpoint, source, Reason::DeliveredLocal)
}

/// Sends a packet back out of the interface that it arrived on.
#[inline(always)]
pub fn back_out(ctx: &TcContext, reason: Reason) -> Verdict {
    // SAFETY: a helper without preconditions.
    let action = unsafe { bpf_redirect(ifindex(ctx), 0) };
    Verdict::done(action as i32, reason)
}
