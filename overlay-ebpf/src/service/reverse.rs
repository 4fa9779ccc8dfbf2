//! The reverse path: on the backend's node, entries that send replies of flows from outside to the
//! ingress node.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use overlay_common::{
    Be32, Reason,
    flow::{is_expired, is_free_again},
    maps::{
        ANSWERED, CONNTRACK_FORWARD, CONNTRACK_REVERSE, Conntrack, ConntrackKey, TCP_SEEN_FIN,
        TCP_SEEN_OTHER_FIN, TCP_SEEN_RST,
    },
    wire::PROTO_SCTP,
};

use crate::{
    clock::{RESOLUTION, now},
    maps::{
        CONNTRACK, CT_NEW,
        lru::Counted,
        work::{Flow, PART_QUOTED, scratch},
    },
    outcome,
    service::{
        conntrack::{
            PATIENT_TRIES, PORT_TRIES, as_other, denies_reset, find_entry, is_reusable, open,
            other_port, reply_key,
        },
        dsr,
    },
};

/// Records that replies to `flow` go to `node`, which translated it, or directly to the client. The
/// latter needs a `frontend` ([`overlay_common::Frontend::bits`]) and a tuple of its own.
///
/// Returns whether the packet must be rewritten to the tuple of `forward`. Two flows of one client
/// address and port through two nodes have the same tuple here. This holds even if the first one
/// has ended and only the backend's TIME-WAIT remembers it (RFC 9293, section 3.6.1). The second
/// flow then gets another source port.
///
/// # Errors
/// [`Reason::ConntrackFull`] if the map takes no entry; [`Reason::TupleTaken`] if no port is free,
/// or for a packet in the middle of an unknown flow; [`Reason::UnrelatedError`] for an ICMP error
/// without a flow through `node`.
#[inline(always)]
pub fn note_reverse(
    flow: &Flow,
    node: Be32,
    frontend: u64,
    forward: &mut Conntrack,
) -> Result<bool, Reason> {
    // Calls in sequence, not nested: each shares the stack with the entry point only.
    if outcome::unpack(note_packed(flow, node, frontend, forward))? == DONE {
        return Ok(false);
    }
    // A remapped flow keeps its port until it ends, even if its tuple becomes free.
    if outcome::unpack(find_remapped_packed(flow, node, forward))? == DONE {
        return Ok(true);
    }
    if flow.part == PART_QUOTED {
        return Err(Reason::UnrelatedError);
    }
    if outcome::unpack(take_tuple_packed(flow, node, frontend, forward))? == DONE {
        return Ok(false);
    }
    outcome::unpack(other_port_packed(flow, node, forward)).map(|_| true)
}

/// The packet's flow was found or made.
const DONE: u32 = 0;
/// The packet's flow was not found.
const NOT_YET: u32 = 1;

#[inline(never)]
fn note_packed(flow: &Flow, node: Be32, frontend: u64, forward: &mut Conntrack) -> i64 {
    outcome::pack(Ok(note(flow, node, frontend, forward)))
}

#[inline(never)]
fn find_remapped_packed(flow: &Flow, node: Be32, forward: &mut Conntrack) -> i64 {
    outcome::pack(Ok(find_remapped(flow, node, forward)))
}

#[inline(never)]
fn take_tuple_packed(flow: &Flow, node: Be32, frontend: u64, forward: &mut Conntrack) -> i64 {
    outcome::pack(take_tuple(flow, node, frontend, forward))
}

#[inline(never)]
fn other_port_packed(flow: &Flow, node: Be32, forward: &mut Conntrack) -> i64 {
    outcome::pack(change_port(flow, node, forward).map(|()| DONE))
}

/// Looks for the flow under its own tuple.
#[inline(always)]
fn note(flow: &Flow, node: Be32, frontend: u64, forward: &mut Conntrack) -> u32 {
    let now = now();
    *forward = reverse_forward(flow, node, now);
    let key = reply_key(&flow.key, forward);
    let (entry, is_new) = find_entry(&key);
    let Some(entry) = entry else { return NOT_YET };
    // SAFETY: as in `conntrack::update`.
    let entry = unsafe { &mut *entry };
    if entry.action != CONNTRACK_REVERSE || entry.node != node || entry.dport != flow.key.sport {
        return NOT_YET;
    }
    refresh(entry, flow, as_other(flow.flags), now);
    dsr::settle(entry, &key, flow, frontend);
    if is_new {
        confirm(&key, entry, flow);
    }
    DONE
}

/// Takes the tuple for the flow, if no other flow needs it.
#[inline(always)]
fn take_tuple(flow: &Flow, node: Be32, frontend: u64, forward: &Conntrack) -> Result<u32, Reason> {
    let now = now();
    let key = reply_key(&flow.key, forward);
    let entry = &mut scratch()?.entry;
    *entry = reverse_entry(&key, flow, node, now);
    dsr::settle(entry, &key, flow, frontend);
    let Some(old) = find_entry(&key).0 else {
        return open(&key, entry, BPF_ANY).map(|()| DONE);
    };
    // SAFETY: as in `conntrack::update`.
    let old = unsafe { &mut *old };
    if !is_free_again(&key, old, now) {
        return Ok(NOT_YET);
    }
    *old = *entry;
    Ok(DONE)
}

/// Looks for the flow under a changed port.
#[inline(always)]
fn find_remapped(flow: &Flow, node: Be32, forward: &mut Conntrack) -> u32 {
    const ENDED: u32 = TCP_SEEN_FIN | TCP_SEEN_RST;
    let now = now();
    let through = flow.key.through(node);
    let (known, is_new) = find_entry(&through);
    let Some(known) = known else { return NOT_YET };
    // SAFETY: as in `conntrack::update`.
    let known = unsafe { &mut *known };
    let has_ended = flow.is_syn() && known.flags & ENDED != 0;
    if known.node != node || is_expired(&through, known, now) || has_ended {
        return NOT_YET;
    }
    let no_reset = if denies_reset(flow) { known.flags & TCP_SEEN_RST } else { 0 };
    refresh(known, flow, flow.flags, now);
    forward.sport = known.sport;
    let key = reply_key(&flow.key, forward);
    let end = as_other(flow.flags) & (TCP_SEEN_OTHER_FIN | TCP_SEEN_RST);
    if end | no_reset != 0
        && let (Some(reply), _) = find_entry(&key)
    {
        // The backend does not answer a reset, and its entry would stay as long as an idle flow's.
        // If the client continues after a reset, the backend may be the next to send, after any
        // silence.
        // SAFETY: as above.
        unsafe { (*reply).flags = (*reply).flags & !no_reset | end };
    }
    if is_new
        && let Some(reply) = CT_NEW.get_ptr(&key)
        // SAFETY: as above.
        && confirm(&key, unsafe { &*reply }, flow)
    {
        let _ = CONNTRACK.insert(&through, &*known, u64::from(BPF_ANY));
        let _ = CT_NEW.remove(&through);
    }
    DONE
}

/// Gives a new flow another port, because its tuple is taken or in TIME-WAIT: a port that the same
/// client had through `node` before, or a free one.
#[inline(always)]
fn change_port(flow: &Flow, node: Be32, forward: &mut Conntrack) -> Result<(), Reason> {
    if !flow.may_be_repicked() || flow.key.proto == PROTO_SCTP {
        return Err(Reason::TupleTaken);
    }
    let now = now();
    let through = flow.key.through(node);
    let entry = &mut scratch()?.entry;
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        let patient = attempt < PATIENT_TRIES;
        attempt += 1;
        forward.sport = other_port(&flow.key, attempt);
        let key = reply_key(&flow.key, forward);
        *entry = reverse_entry(&key, flow, node, now);
        if is_available(CONNTRACK, &key, entry, patient)
            && is_available(CT_NEW, &key, entry, patient)
            && open(&key, entry, BPF_NOEXIST).is_ok()
        {
            // An entry that another flow has left.
            let _ = CONNTRACK.remove(&through);
            return open(&through, forward, BPF_ANY);
        }
    }
    Err(Reason::TupleTaken)
}

/// Whether a flow with `entry` can have the tuple. Removes an old entry that is in the way, because
/// there are few ports to choose from.
#[inline(always)]
fn is_available<const ENTRIES: usize>(
    map: Counted<ConntrackKey, Conntrack, ENTRIES>,
    key: &ConntrackKey,
    entry: &Conntrack,
    patient: bool,
) -> bool {
    let Some(old) = map.get_ptr(key) else { return true };
    // SAFETY: as in `conntrack::update`.
    let old = unsafe { &*old };
    let is_own = old.action == entry.action && old.node == entry.node && old.dport == entry.dport;
    (is_own || is_reusable(key, old, entry.last_seen, patient)) && map.remove(key).is_ok()
}

/// As `conntrack::confirm`, for an entry in [`CT_NEW`]: the client sends again, through the same
/// node. Returns whether the entry has moved.
#[inline(always)]
fn confirm(key: &ConntrackKey, entry: &Conntrack, flow: &Flow) -> bool {
    if flow.is_syn() || entry.flags & ANSWERED == 0 {
        return false;
    }
    if CONNTRACK.insert(key, entry, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    let _ = CT_NEW.remove(key);
    true
}

/// The entry of the client's direction on the backend's node. It changes nothing unless the tuple
/// is taken.
#[inline(always)]
fn reverse_forward(flow: &Flow, node: Be32, now: u64) -> Conntrack {
    let key = &flow.key;
    Conntrack {
        saddr: key.saddr,
        daddr: key.daddr,
        sport: key.sport,
        dport: key.dport,
        vni: key.vni,
        service: 0,
        backend: 0,
        node,
        action: CONNTRACK_FORWARD,
        pad: 0,
        idle: 0,
        flags: flow.flags,
        generation: 0,
        last_seen: now,
    }
}

/// The entry of the backend's direction: to `node`, with the client's own port.
#[inline(always)]
fn reverse_entry(key: &ConntrackKey, flow: &Flow, node: Be32, now: u64) -> Conntrack {
    Conntrack {
        saddr: key.saddr,
        daddr: key.daddr,
        sport: key.sport,
        dport: flow.key.sport,
        action: CONNTRACK_REVERSE,
        flags: as_other(flow.flags),
        ..reverse_forward(flow, node, now)
    }
}

/// Updates time and state of an entry with a packet of the client, which sets `flags`. A SYN starts
/// a new connection.
#[inline(always)]
fn refresh(entry: &mut Conntrack, flow: &Flow, flags: u32, now: u64) {
    let before = if denies_reset(flow) { entry.flags & !TCP_SEEN_RST } else { entry.flags };
    let state = if flow.is_syn() { flags } else { before | flags };
    if state != entry.flags {
        entry.flags = state;
    }
    if now.wrapping_sub(entry.last_seen) > RESOLUTION {
        entry.last_seen = now;
    }
}
