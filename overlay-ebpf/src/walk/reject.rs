//! A packet whose flow has no backend: its sender is told at once, as a host tells one that asks for a port on which
//! no program listens, TCP with a reset and others with ICMP "port unreachable".

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

/// What becomes of a packet, as it came, that was rejected for `reason`: its sender is told of [`Reason::NoBackend`],
/// and of [`Reason::BackendGone`] where the service says so and it is TCP.
///
/// # Errors
/// The reason, where the sender is not told: for other reasons, and what gets no answer.
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

/// What becomes of a container's packet to an address of its network that no endpoint has. A connection that was given
/// its backend when it was made (`service::socket::netns`), and has outlived it, sends there.
///
/// # Errors
/// [`Reason::NoEndpoint`]; [`Reason::BackendGone`] for TCP to a backend that was there, where the client is not told.
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

/// What became of a reset that tells a client of a stale backend.
#[inline(always)]
fn reset_outcome(ctx: &TcContext, reset: Result<bool, Reason>) -> Outcome {
    match reset {
        Ok(true) => Ok(back_out(ctx, Reason::BackendGoneAnswered)),
        _ => Err(Reason::BackendGone),
    }
}
