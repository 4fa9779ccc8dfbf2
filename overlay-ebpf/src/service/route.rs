//! From a service to a backend: by the flow's entry, or by a new pick.

use overlay_common::{
    Be16, Be32, Reason, UNDERLAY_VNI,
    maps::{
        BACKEND_COUNTED, BACKEND_DOWN, Backend, CONNTRACK_FORWARD, DSR, SERVICE_DSR, Service,
        TCP_SEEN_FIN, TCP_SEEN_RST, VNI_FLAG_IPV6,
    },
    wire::PROTO_UDP,
};

use crate::{
    maps::{
        BACKENDS, lookup,
        work::{PART_QUOTED, Work},
    },
    observe::{count, event},
    outcome,
    service::{
        conntrack::{self, Target},
        scheduler, stats,
    },
};

/// Fills `work.entry` and `work.backend` for `work.flow` to `service`: with the flow's backend, or
/// with a new one. `port` is the backends' port, `length` the packet's length for counting, and
/// `via` [`overlay_common::maps::VIA_VIP`] or 0.
///
/// # Errors
/// [`Reason::NoBackend`] if no backend takes new flows, [`Reason::BackendGone`] for a TCP
/// connection whose backend was removed, [`Reason::UnrelatedError`] for an ICMP error without a
/// flow, and the errors of [`conntrack::create`].
#[inline(always)]
pub fn route(
    work: &mut Work,
    service: u32,
    port: Be16,
    (length, via): (u32, u32),
) -> Result<(), Reason> {
    work.pick.via = via;
    // Calls in sequence, not nested: each shares the stack with the entry point only.
    let picked = outcome::unpack(find_or_pick_packed(work, service))?;
    if picked == FOUND {
        return Ok(());
    }
    outcome::unpack(open_packed(work, service, picked, port, length))?;
    stats::flow(work);
    Ok(())
}

/// In place of a backend's number, which is never zero: the flow has its backend.
const FOUND: u32 = 0;

#[inline(never)]
fn find_or_pick_packed(work: &mut Work, service: u32) -> i64 {
    outcome::pack(find_or_pick(work, service))
}

#[inline(always)]
fn find_or_pick(work: &mut Work, service: u32) -> Result<u32, Reason> {
    work.pick.repicked = 0;
    if conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_FORWARD {
        let backend = lookup(&BACKENDS, &work.entry.backend);
        // A flow that may change its backend leaves one on a node that is down.
        let backend = backend.filter(|b| b.state != BACKEND_DOWN || !work.flow.may_be_repicked());
        if let Some(backend) = backend {
            work.backend = backend;
            if ends_now(work) {
                scheduler::ended(work.entry.backend);
            }
            return Ok(FOUND);
        }
        if !work.flow.may_be_repicked() {
            return Err(Reason::BackendGone);
        }
        work.pick.repicked = 1;
    }
    if work.flow.part == PART_QUOTED {
        return Err(Reason::UnrelatedError);
    }
    match scheduler::pick(&mut work.pick, &work.flow.key, service) {
        None | Some(FOUND) => Err(Reason::NoBackend),
        Some(number) => Ok(number),
    }
}

#[inline(never)]
fn open_packed(work: &mut Work, service: u32, number: u32, port: Be16, length: u32) -> i64 {
    outcome::pack(open(work, (service, number), port, length).map(|()| 0))
}

/// Opens the flow to the backend with this number.
#[inline(always)]
fn open(
    work: &mut Work,
    (service, number): (u32, u32),
    port: Be16,
    length: u32,
) -> Result<(), Reason> {
    let backend: Backend = lookup(&BACKENDS, &number).ok_or(Reason::NoBackend)?;
    // The pick has filled in the service.
    let Service { tcp_idle, udp_idle, flags, .. } = work.pick.service;
    let idle = if work.flow.key.proto == PROTO_UDP { udp_idle } else { tcp_idle };
    let direct = if is_dsr(work, flags, &backend) { DSR } else { 0 };
    let target = Target {
        service,
        backend: number,
        vni: backend.vni | work.flow.key.vni & VNI_FLAG_IPV6,
        ip: backend.ip,
        port,
        idle,
        via: work.pick.via | direct,
    };
    work.backend = backend;
    conntrack::create(&work.flow, &target, &mut work.entry)?;
    if work.backend.flags & BACKEND_COUNTED != 0 {
        scheduler::began(number);
    }
    let reason = if work.pick.repicked != 0 { Reason::FlowRepicked } else { Reason::FlowCreated };
    count(reason, length);
    event::report_flow(&work.flow.key, &work.entry, reason);
    Ok(())
}

/// Whether the new flow has DSR: the client is outside, and the backend is on another node.
#[inline(always)]
fn is_dsr(work: &Work, service: u16, backend: &Backend) -> bool {
    service & SERVICE_DSR != 0
        && work.flow.key.vni & !VNI_FLAG_IPV6 == UNDERLAY_VNI
        && backend.node != Be32::ZERO
}

/// Whether this packet ends a client's connection to a backend whose flows are counted.
#[inline(always)]
fn ends_now(work: &Work) -> bool {
    const END: u32 = TCP_SEEN_FIN | TCP_SEEN_RST;
    work.flow.flags & END != 0
        && work.entry.flags & END == 0
        && work.backend.flags & BACKEND_COUNTED != 0
}
