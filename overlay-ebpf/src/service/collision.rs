//! Flows from a client directly to a backend whose replies have the same tuple as those of another
//! flow of the client, through a VIP or a published port. The direct flow gets another source port,
//! so that both work.

use overlay_common::{
    Reason,
    maps::{CONNTRACK_REPLY, Conntrack, ConntrackKey},
};

use crate::{
    maps::{
        CONNTRACK, CT_NEW,
        work::{PART_WHOLE, Work, work},
    },
    outcome,
    service::conntrack::{self, Target},
};

/// Opens `work.flow`, which has no entry, if it must be translated. Returns whether it did; the
/// entry is in `work.entry` then.
///
/// # Errors
/// Those of [`conntrack::create`].
#[inline(always)]
pub fn open(work: &Work) -> Result<bool, Reason> {
    let may_begin = work.flow.may_be_repicked() && work.flow.part == PART_WHOLE;
    if !may_begin {
        return Ok(false);
    }
    Ok(outcome::unpack(open_collision_packed())? != 0)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn open_collision_packed() -> i64 {
    outcome::pack(work().and_then(|work| open_if_taken(work).map(u32::from)))
}

#[inline(always)]
fn open_if_taken(work: &mut Work) -> Result<bool, Reason> {
    let key = &work.flow.key;
    let replies = ConntrackKey {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
        ..*key
    };
    if !is_reply(CONNTRACK.get_ptr(&replies)) && !is_reply(CT_NEW.get_ptr(&replies)) {
        return Ok(false);
    }
    let (ip, port, vni) = (key.daddr, key.dport, key.vni);
    let target = Target { service: 0, backend: 0, vni, ip, port, idle: 0, via: 0 };
    conntrack::create(&work.flow, &target, &mut work.entry)?;
    Ok(true)
}

#[inline(always)]
fn is_reply(entry: Option<*const Conntrack>) -> bool {
    // SAFETY: the pointer comes from a successful look-up; the kernel never unmaps LRU entries.
    entry.is_some_and(|entry| unsafe { (*entry).action } == CONNTRACK_REPLY)
}
