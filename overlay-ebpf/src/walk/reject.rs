//! Rejects packets without a backend. The sender learns at once, as from a host without a program
//! on the port: TCP gets a reset, and other protocols get ICMP "port unreachable".

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    maps::{EndpointKey, SERVICE_RESETS, STALE_RESETS},
};

use crate::{
    family::{Family, Sent},
    forward::deliver::back_out,
    maps::{SERVICES, STALE_BACKENDS, lookup, work::Area},
    outcome::Outcome,
};

/// The outcome of a packet, unchanged so far, that was rejected for `reason`. The sender gets an
/// answer for [`Reason::NoBackend`], and for [`Reason::BackendGone`] with TCP if the service says
/// so.
///
/// # Errors
/// The reason if the sender gets no answer: for other reasons, and for packets that must not be
/// answered.
#[inline(always)]
pub fn answer<F: Family>(ctx: &TcContext, work: Area, reason: Reason) -> Outcome {
    let tells =
        || lookup(&SERVICES, &work.entry.service).is_some_and(|s| s.flags & SERVICE_RESETS != 0);
    if reason == Reason::BackendGone && tells() {
        return reset_outcome(ctx, F::reset(ctx));
    }
    if reason != Reason::NoBackend {
        return Err(reason);
    }
    F::answer_closed_port(ctx)?;
    Ok(back_out(ctx, Reason::NoBackendAnswered))
}

/// The outcome of a container's packet to an address of its network that no endpoint has. A
/// connection that got its backend at connect time (`service::socket::netns`) and has outlived it
/// sends there.
///
/// # Errors
/// [`Reason::NoEndpoint`]; [`Reason::BackendGone`] for TCP to a stale backend if the client gets no
/// reset.
#[inline(always)]
pub fn stale<F: Family>(packet: &Sent<'_, F>) -> Outcome {
    let ip = F::stale_backend(packet).ok_or(Reason::NoEndpoint)?;
    let key = EndpointKey { vni: packet.link.vni, ip };
    let flags = lookup(&STALE_BACKENDS, &key).ok_or(Reason::NoEndpoint)?;
    if flags & STALE_RESETS == 0 {
        return Err(Reason::BackendGone);
    }
    reset_outcome(packet.ctx, F::reset_stale(packet.ctx))
}

/// The outcome of a packet to a stale backend, from the result of its reset.
#[inline(always)]
fn reset_outcome(ctx: &TcContext, reset: Result<bool, Reason>) -> Outcome {
    match reset {
        Ok(true) => Ok(back_out(ctx, Reason::BackendGoneAnswered)),
        _ => Err(Reason::BackendGone),
    }
}
