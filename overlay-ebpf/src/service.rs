//! From a service to a backend: by the flow's entry, or by a new pick.

use overlay_common::{
    Be16, Reason,
    maps::{Backend, CONNTRACK_FORWARD, SlotKey},
};

use crate::{
    conntrack::{self, Target},
    event, fallible,
    maps::{BACKENDS, RR_CURSOR, SERVICES, SLOTS, Work, lookup},
    observe::count,
};

/// Fills `work.entry` and `work.backend` for `work.flow` to `service`: with the backend the flow
/// has, or with a new one. `port` is the backends' port; `length` the packet's, for counting.
///
/// # Errors
/// [`Reason::NoBackend`] when none takes new flows, [`Reason::BackendGone`] for a TCP connection
/// whose backend was removed, and the errors of [`conntrack::create`].
#[inline(always)]
pub fn route(work: &mut Work, service: u32, port: Be16, length: u32) -> Result<(), Reason> {
    fallible::unpack(route_packed(work, service, port, length)).map(|_| ())
}

#[inline(never)]
fn route_packed(work: &mut Work, service: u32, port: Be16, length: u32) -> i64 {
    fallible::pack(find_or_pick(work, service, port, length).map(|()| 0))
}

#[inline(always)]
fn find_or_pick(work: &mut Work, service: u32, port: Be16, length: u32) -> Result<(), Reason> {
    let mut repicked = false;
    if conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_FORWARD {
        if let Some(backend) = lookup(&BACKENDS, &work.entry.backend) {
            work.backend = backend;
            return Ok(());
        }
        if !work.flow.may_be_repicked() {
            return Err(Reason::BackendGone);
        }
        repicked = true;
    }
    let number = pick(service)?;
    let backend: Backend = lookup(&BACKENDS, &number).ok_or(Reason::NoBackend)?;
    let target = Target { service, backend: number, vni: backend.vni, ip: backend.ip, port };
    work.backend = backend;
    conntrack::create(&work.flow, &target, &mut work.entry)?;
    let reason = if repicked { Reason::FlowRepicked } else { Reason::FlowCreated };
    count(reason, length);
    event::tell_flow(work, reason);
    Ok(())
}

/// The number of the next backend in turn.
#[inline(always)]
fn pick(service: u32) -> Result<u32, Reason> {
    let slots = lookup(&SERVICES, &service).ok_or(Reason::NoBackend)?.slots;
    if slots == 0 {
        return Err(Reason::NoBackend);
    }
    let turn = match RR_CURSOR.get_ptr_mut(&service) {
        // Not atomic: two CPUs that pick in the same moment may take the same backend once, which
        // costs less than bouncing a locked cache line between them.
        // SAFETY: the pointer comes from a successful look-up; a torn u32 does not exist.
        Some(cursor) => unsafe {
            let turn = cursor.read_volatile();
            cursor.write_volatile(turn.wrapping_add(1));
            turn
        },
        None => 0,
    };
    lookup(&SLOTS, &SlotKey { service, index: turn % slots }).ok_or(Reason::NoBackend)
}
