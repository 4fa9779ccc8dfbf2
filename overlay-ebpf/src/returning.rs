//! On the backend's node: which node a flow from outside came through, and that replies go back there.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use overlay_common::{
    Be32, Reason,
    flow::is_expired,
    maps::{ANSWERED, CONNTRACK_FORWARD, CONNTRACK_RETURN, Conntrack, ConntrackKey},
    wire::PROTO_SCTP,
};

use crate::{
    conntrack::{PORT_TRIES, RESOLUTION, now, open, other_port, reply_key},
    direct_return, fallible,
    maps::{CONNTRACK, OPENING},
    packet::{Flow, PART_QUOTED},
};

/// Notes that replies to `flow` go through `node`, which translated it, or straight to the client, where
/// `asked` ([`overlay_common::Asked::bits`]) says so and the tuple is no other flow's.
/// Returns whether the packet must be rewritten to `forward`'s tuple first: two flows of one client
/// address and port that came through two nodes are one tuple here, even when the first has ended
/// and only the backend's TIME-WAIT remembers it (RFC 9293, section 3.6.1), so the second one gets
/// another source port.
///
/// # Errors
/// [`Reason::ConntrackFull`] when the map refuses, [`Reason::TupleTaken`] when no port is free, or
/// for a packet in the middle of a flow that is not known, [`Reason::UnrelatedError`] for an ICMP error about
/// no flow of `node`.
#[inline(always)]
pub fn note_return(
    flow: &Flow,
    node: Be32,
    asked: u64,
    forward: &mut Conntrack,
) -> Result<bool, Reason> {
    // One after the other and not one in the other: they share the stack with the entry point.
    if fallible::unpack(note_packed(flow, node, asked, forward))? == NOTED {
        return Ok(false);
    }
    fallible::unpack(other_way_packed(flow, node, forward)).map(|translate| translate != 0)
}

/// Replies go back through the node, and the packet goes on as it is.
const NOTED: u32 = 0;
/// Another node's flow has the tuple.
const TAKEN: u32 = 1;

#[inline(never)]
fn note_packed(flow: &Flow, node: Be32, asked: u64, forward: &mut Conntrack) -> i64 {
    fallible::pack(note(flow, node, asked, forward))
}

#[inline(never)]
fn other_way_packed(flow: &Flow, node: Be32, forward: &mut Conntrack) -> i64 {
    fallible::pack(other_way(flow, node, forward).map(u32::from))
}

#[inline(always)]
fn note(flow: &Flow, node: Be32, asked: u64, forward: &mut Conntrack) -> Result<u32, Reason> {
    let now = now();
    *forward = return_forward(flow, node, now);
    let key = reply_key(&flow.key, forward);
    let is_error = flow.part == PART_QUOTED;
    let (entry, is_opening) = held(&key);
    let Some(entry) = entry else {
        if is_error {
            return Err(Reason::UnrelatedError);
        }
        let mut entry = return_entry(&key, flow, node, now);
        direct_return::settle(&mut entry, &key, flow, asked);
        return open(&key, &entry, BPF_ANY).map(|()| NOTED);
    };
    // SAFETY: as in `conntrack::look`.
    let entry = unsafe { &mut *entry };
    if entry.action == CONNTRACK_RETURN && entry.node == node && entry.dport == flow.key.sport {
        refresh(entry, flow, now);
        direct_return::settle(entry, &key, flow, asked);
        if is_opening {
            confirm(&key, entry, flow);
        }
        return Ok(NOTED);
    }
    if is_expired(&key, entry, now) && !is_error {
        *entry = return_entry(&key, flow, node, now);
        direct_return::settle(entry, &key, flow, asked);
        return Ok(NOTED);
    }
    Ok(TAKEN)
}

/// The way of a flow whose tuple another node's flow has.
#[inline(always)]
fn other_way(flow: &Flow, node: Be32, forward: &mut Conntrack) -> Result<bool, Reason> {
    let now = now();
    let through = flow.key.through(node);
    let (known, is_opening) = held(&through);
    if let Some(known) = known {
        // SAFETY: as above.
        let known = unsafe { &mut *known };
        if known.node == node && !is_expired(&through, known, now) {
            refresh(known, flow, now);
            forward.sport = known.sport;
            let key = reply_key(&flow.key, forward);
            if is_opening
                && let Some(reply) = OPENING.get_ptr(&key)
                // SAFETY: as above.
                && confirm(&key, unsafe { &*reply }, flow)
            {
                let _ = CONNTRACK.insert(&through, &*known, u64::from(BPF_ANY));
                let _ = OPENING.remove(&through);
            }
            return Ok(true);
        }
    }
    if flow.part == PART_QUOTED {
        return Err(Reason::UnrelatedError);
    }
    if !flow.may_be_repicked() || flow.key.proto == PROTO_SCTP {
        return Err(Reason::TupleTaken);
    }
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        attempt += 1;
        forward.sport = other_port(&flow.key, attempt);
        let key = reply_key(&flow.key, forward);
        let entry = return_entry(&key, flow, node, now);
        if CONNTRACK.get_ptr(&key).is_none() && open(&key, &entry, BPF_NOEXIST).is_ok() {
            // What another flow has left.
            let _ = CONNTRACK.remove(&through);
            return open(&through, forward, BPF_ANY).map(|()| true);
        }
    }
    Err(Reason::TupleTaken)
}

/// An entry, wherever it is, and whether that is [`OPENING`].
#[inline(always)]
fn held(key: &ConntrackKey) -> (Option<*mut Conntrack>, bool) {
    match CONNTRACK.get_ptr_mut(key) {
        None => (OPENING.get_ptr_mut(key), true),
        entry => (entry, false),
    }
}

/// As `conntrack::confirm`, for an entry in [`OPENING`]: the client speaks again, through the node that was
/// asked. Returns whether the entry has left.
#[inline(always)]
fn confirm(key: &ConntrackKey, entry: &Conntrack, flow: &Flow) -> bool {
    if flow.is_syn() || entry.state & ANSWERED == 0 {
        return false;
    }
    if CONNTRACK.insert(key, entry, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    let _ = OPENING.remove(key);
    true
}

/// The client's direction on the backend's node: untouched, until its tuple is found taken.
#[inline(always)]
fn return_forward(flow: &Flow, node: Be32, now: u64) -> Conntrack {
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
        state: flow.flags,
        idle: 0,
        last_seen: now,
    }
}

/// The backend's direction: to `node`, with the client's own port.
#[inline(always)]
fn return_entry(key: &ConntrackKey, flow: &Flow, node: Be32, now: u64) -> Conntrack {
    Conntrack {
        saddr: key.saddr,
        daddr: key.daddr,
        sport: key.sport,
        dport: flow.key.sport,
        action: CONNTRACK_RETURN,
        ..return_forward(flow, node, now)
    }
}

/// Brings time and state of an entry up to date; a SYN begins a new connection.
#[inline(always)]
fn refresh(entry: &mut Conntrack, flow: &Flow, now: u64) {
    let state = if flow.is_syn() { flow.flags } else { entry.state | flow.flags };
    if state != entry.state {
        entry.state = state;
    }
    if now.wrapping_sub(entry.last_seen) > RESOLUTION {
        entry.last_seen = now;
    }
}
