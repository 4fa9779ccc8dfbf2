//! Translated flows: one entry for each direction in LRU maps. Timeouts are checked on use.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use overlay_common::{
    Be16, Be32, Reason,
    flow::{is_expired, is_free_again},
    hash,
    maps::{
        ANSWERED, CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_REVERSE, Conntrack, ConntrackKey,
        DSR, TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_OTHER_FIN, TCP_SEEN_RST, VIA_VIP,
    },
    wire::PROTO_SCTP,
};

use crate::{
    clock::{RESOLUTION, now},
    maps::{
        BACKENDS, CONNTRACK, CT_NEW, lookup,
        work::{Flow, scratch},
    },
};

/// Number of source ports to try if a tuple is taken.
pub const PORT_TRIES: u32 = 8;

/// The first tries take only tuples that are out of TIME-WAIT. The later ones also take tuples in
/// TIME-WAIT: a lost SYN is better than no port.
pub const PATIENT_TRIES: u32 = PORT_TRIES / 2;

/// As [`PORT_TRIES`]. SCTP keeps its port: its checksum covers the whole packet, and an update
/// would have to read all of it.
#[inline(always)]
fn port_tries(proto: u8) -> u32 {
    if proto == PROTO_SCTP { 1 } else { PORT_TRIES }
}
/// First translated source port: the dynamic range of RFC 6335.
const PORT_MIN: u32 = 49152;

/// Copies the live entry of a flow to `out`, updates its time and TCP state, and returns its
/// action; 0 without an entry.
#[inline(never)]
pub fn find(flow: &Flow, out: &mut Conntrack) -> u8 {
    let now = now();
    if let Some(entry) = CONNTRACK.get_ptr_mut(&flow.key) {
        let action = update(entry, flow, now, out);
        if action == CONNTRACK_FORWARD && needs_reply_refresh(out, now) {
            refresh_reply(flow, out, now);
        }
        if action != 0 {
            if ends_now(flow, out) {
                mark_end(flow, out);
            }
            return action;
        }
    }
    let Some(entry) = CT_NEW.get_ptr_mut(&flow.key) else {
        return 0;
    };
    let action = update(entry, flow, now, out);
    if action != 0 && ends_now(flow, out) {
        mark_end(flow, out);
    }
    if action == CONNTRACK_FORWARD && !flow.is_syn() {
        confirm(flow, out);
    }
    action
}

/// Whether the reply entry must be refreshed by the client's packets. With DSR the replies do not
/// pass this node.
#[inline(always)]
fn needs_reply_refresh(forward: &Conntrack, now: u64) -> bool {
    forward.flags & DSR != 0 && now.wrapping_sub(forward.last_seen) > RESOLUTION
}

/// Refreshes the reply entry of the flow of `forward`. Otherwise it would expire and another flow
/// would get its tuple.
#[inline(always)]
fn refresh_reply(flow: &Flow, forward: &Conntrack, now: u64) {
    let Some(reply) = CONNTRACK.get_ptr_mut(&reply_key(&flow.key, forward)) else {
        return;
    };
    let key = &flow.key;
    // SAFETY: as in `update`.
    let reply = unsafe { &mut *reply };
    let is_its = reply.action == CONNTRACK_REPLY
        && (reply.saddr, reply.sport) == (key.daddr, key.dport)
        && (reply.daddr, reply.dport) == (key.saddr, key.sport)
        && reply.vni == key.vni;
    if is_its {
        reply.last_seen = now;
    }
}

/// Whether a packet is a reset, or the first one with a FIN in its direction.
#[inline(always)]
fn ends_now(flow: &Flow, before: &Conntrack) -> bool {
    flow.flags & (!before.flags & TCP_SEEN_FIN | TCP_SEEN_RST) != 0
}

/// Records in the entry of the other direction that a packet closes this direction, or resets the
/// connection. No packet answers a backend's reset, and the client's entry would stay open for
/// hours. A client's reset is not recorded: any host that guesses the ports can send one. The
/// backend's packets show whether it was real.
#[inline(never)]
fn mark_end(flow: &Flow, entry: &Conntrack) {
    let key = &flow.key;
    const END: u32 = TCP_SEEN_OTHER_FIN | TCP_SEEN_RST;
    let (other, tells) = match entry.action {
        CONNTRACK_FORWARD => (reply_key(key, entry), TCP_SEEN_OTHER_FIN),
        CONNTRACK_REPLY => (reply_key(key, entry), END),
        // A flow through another node whose port this node changed (`service::reverse`).
        CONNTRACK_REVERSE if entry.dport != key.dport => {
            let client = ConntrackKey {
                saddr: key.daddr,
                daddr: key.saddr,
                sport: entry.dport,
                dport: key.sport,
                vni: key.vni,
                proto: key.proto,
                scope: [0; 3],
            };
            (client.through(entry.node), END)
        }
        _ => return,
    };
    if let (Some(other), _) = find_entry(&other) {
        // SAFETY: as in `update`.
        unsafe { (*other).flags |= as_other(flow.flags) & tells };
    }
}

/// An entry from either table, and whether the table is [`CT_NEW`].
#[inline(always)]
pub fn find_entry(key: &ConntrackKey) -> (Option<*mut Conntrack>, bool) {
    match CONNTRACK.get_ptr_mut(key) {
        None => (CT_NEW.get_ptr_mut(key), true),
        entry => (entry, false),
    }
}

/// The flags of a packet as the entry of the other direction records them.
#[inline(always)]
pub fn as_other(flags: u32) -> u32 {
    let fin = if flags & TCP_SEEN_FIN != 0 { TCP_SEEN_OTHER_FIN } else { 0 };
    flags & !TCP_SEEN_FIN | fin
}

/// Copies an entry to `out`, updates it with a packet of its flow, and returns its action. `out`
/// has the state before the packet.
#[inline(always)]
fn update(entry: *mut Conntrack, flow: &Flow, now: u64, out: &mut Conntrack) -> u8 {
    // SAFETY: the pointer comes from a successful look-up; the kernel never unmaps LRU entries. If
    // it reuses the entry at this moment, another flow gets a wrong time at worst.
    unsafe {
        *out = *entry;
        if is_expired(&flow.key, out, now) {
            return 0;
        }
        // A SYN on the tuple of a connection that has ended starts a new connection.
        if flow.is_syn() && out.flags & (TCP_SEEN_FIN | TCP_SEEN_RST) != 0 {
            return 0;
        }
        if now.wrapping_sub(out.last_seen) > RESOLUTION {
            (*entry).last_seen = now;
        }
        let state = after(out, flow);
        if state != out.flags {
            (*entry).flags = state;
        }
        out.action
    }
}

/// The state of an entry after a packet.
#[inline(always)]
fn after(entry: &Conntrack, flow: &Flow) -> u32 {
    // An entry of both directions sees the client's reset before the backend does, while packets of
    // the backend are in transit.
    let denies_reset = denies_reset(flow) && entry.action != CONNTRACK_REVERSE;
    let before = if denies_reset { entry.flags & !TCP_SEEN_RST } else { entry.flags };
    let answers = entry.action == CONNTRACK_REPLY || entry.action == CONNTRACK_REVERSE;
    before | flow.flags | if answers { ANSWERED } else { 0 }
}

/// Whether a packet shows that its connection was not reset: it has ACK and no RST. Any host that
/// guesses the ports can send a reset, and the ends reject a wrong one (RFC 9293, section
/// 3.10.7.4). An end that has accepted a reset answers such a packet with another reset.
#[inline(always)]
pub fn denies_reset(flow: &Flow) -> bool {
    flow.flags & (TCP_SEEN_ACK | TCP_SEEN_RST) == TCP_SEEN_ACK
}

/// The client sends again. If the backend has answered, the flow is in use and moves from
/// [`CT_NEW`] to [`CONNTRACK`]. If that takes no entry, the flow stays.
#[inline(always)]
fn confirm(flow: &Flow, forward: &mut Conntrack) {
    let key = reply_key(&flow.key, forward);
    let Some(reply) = CT_NEW.get_ptr(&key) else {
        return;
    };
    // SAFETY: as in `update`.
    let reply = unsafe { &*reply };
    if reply.action != CONNTRACK_REPLY || reply.flags & ANSWERED == 0 {
        return;
    }
    let before = forward.flags;
    forward.flags |= flow.flags | ANSWERED;
    let any = u64::from(BPF_ANY);
    if CONNTRACK.insert(&key, reply, any).is_ok()
        && CONNTRACK.insert(&flow.key, &*forward, any).is_ok()
    {
        let _ = CT_NEW.remove(&key);
        let _ = CT_NEW.remove(&flow.key);
    }
    forward.flags = before;
}

/// The destination of a new flow.
pub struct Target {
    /// Number of the service.
    pub service: u32,
    /// Number of the backend.
    pub backend: u32,
    /// Network of the backend.
    pub vni: u32,
    /// Address of the backend.
    pub ip: Be32,
    /// Port of the backend.
    pub port: Be16,
    /// [`Conntrack::idle`] of the flow.
    pub idle: u16,
    /// First bits of [`Conntrack::flags`] in the client's direction: [`VIA_VIP`],
    /// [`overlay_common::maps::DSR`].
    pub via: u32,
}

/// Writes the entry of the client's direction towards `target` to `out`. A backend that reaches
/// itself through the VIP gets the VIP as source: its stack drops packets with its own address as
/// source.
#[inline(always)]
fn forward_entry(flow: &Flow, target: &Target, now: u64, out: &mut Conntrack) {
    let key = &flow.key;
    let hairpin = key.vni == target.vni && key.saddr == target.ip;
    *out = Conntrack {
        saddr: if hairpin { key.daddr } else { key.saddr },
        daddr: target.ip,
        sport: key.sport,
        dport: target.port,
        vni: target.vni,
        service: target.service,
        backend: target.backend,
        node: Be32::ZERO,
        action: CONNTRACK_FORWARD,
        pad: 0,
        idle: target.idle,
        flags: flow.flags | target.via,
        generation: 0,
        last_seen: now,
    };
}

/// Checks that a reply comes from the node of its backend.
///
/// # Errors
/// [`Reason::BackendGone`] and [`Reason::SpoofedInnerSource`].
#[inline(always)]
pub fn check_backend(entry: &Conntrack, sender: Be32) -> Result<(), Reason> {
    let backend = lookup(&BACKENDS, &entry.backend).ok_or(Reason::BackendGone)?;
    if backend.node == sender { Ok(()) } else { Err(Reason::SpoofedInnerSource) }
}

/// The tuple of the backend's replies to `forward`.
#[inline(always)]
pub fn reply_key(key: &ConntrackKey, forward: &Conntrack) -> ConntrackKey {
    ConntrackKey {
        saddr: forward.daddr,
        daddr: forward.saddr,
        sport: forward.dport,
        dport: forward.sport,
        vni: forward.vni,
        proto: key.proto,
        scope: [0; 3],
    }
}

/// The entry that translates replies of `forward` back: the client must see the frontend's address.
#[inline(always)]
fn reply_entry(key: &ConntrackKey, forward: &Conntrack, now: u64) -> Conntrack {
    Conntrack {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
        vni: key.vni,
        service: forward.service,
        backend: forward.backend,
        node: Be32::ZERO,
        action: CONNTRACK_REPLY,
        pad: 0,
        idle: forward.idle,
        flags: forward.flags & VIA_VIP,
        generation: 0,
        last_seen: now,
    }
}

/// Whether two reply entries are of the same client and frontend.
#[inline(always)]
fn same_client(a: &Conntrack, b: &Conntrack) -> bool {
    a.saddr == b.saddr
        && a.daddr == b.daddr
        && a.sport == b.sport
        && a.dport == b.dport
        && a.vni == b.vni
}

/// Creates both entries of a flow to `target` and copies that of the client's direction to
/// `forward`. If another live flow has the tuple (two clients behind one address, or one client
/// through two frontends), it also translates the source port.
///
/// # Errors
/// [`Reason::TupleTaken`] if no port is free, [`Reason::ConntrackFull`] if the map takes no entry,
/// [`Reason::ServiceProtocol`] for SCTP to another port than the frontend's ([`port_tries`]).
#[inline(always)]
pub fn create(flow: &Flow, target: &Target, forward: &mut Conntrack) -> Result<(), Reason> {
    if flow.key.proto == PROTO_SCTP && target.port != flow.key.dport {
        return Err(Reason::ServiceProtocol);
    }
    let now = now();
    forward_entry(flow, target, now, forward);
    let reply = &mut scratch()?.entry;
    *reply = reply_entry(&flow.key, forward, now);
    let mut attempt = 0;
    while attempt < port_tries(flow.key.proto) {
        let key = reply_key(&flow.key, forward);
        let patient = attempt < PATIENT_TRIES;
        if is_free(&key, reply, now, patient)
            && (CT_NEW.insert(&key, reply, u64::from(BPF_NOEXIST)).is_ok()
                || take_over(CT_NEW.get_ptr_mut(&key), &key, reply, now, patient))
        {
            // An entry that another connection on this tuple has left.
            let _ = CONNTRACK.remove(&flow.key);
            return open(&flow.key, forward, BPF_ANY);
        }
        attempt += 1;
        forward.sport = other_port(&flow.key, attempt);
    }
    Err(Reason::TupleTaken)
}

/// Whether the reply entry's key is free in [`CONNTRACK`]. Removes an entry that is no longer in
/// use.
#[inline(always)]
fn is_free(key: &ConntrackKey, reply: &Conntrack, now: u64, patient: bool) -> bool {
    let Some(entry) = CONNTRACK.get_ptr(key) else {
        return true;
    };
    // SAFETY: as in `update`.
    let old = unsafe { &*entry };
    if !is_replaceable(key, old, reply, now, patient) {
        return false;
    }
    let _ = CONNTRACK.remove(key);
    true
}

#[inline(always)]
fn is_replaceable(
    key: &ConntrackKey,
    old: &Conntrack,
    reply: &Conntrack,
    now: u64,
    patient: bool,
) -> bool {
    (old.action == reply.action && same_client(old, reply)) || is_reusable(key, old, now, patient)
}

/// Whether the key of an old entry may be used again. With `patient`, its flow must be out of
/// TIME-WAIT too.
#[inline(always)]
pub fn is_reusable(key: &ConntrackKey, old: &Conntrack, now: u64, patient: bool) -> bool {
    if patient { is_free_again(key, old, now) } else { is_expired(key, old, now) }
}

/// Replaces a reply entry if it belongs to this flow or is no longer in use.
#[inline(always)]
pub fn take_over(
    entry: Option<*mut Conntrack>,
    key: &ConntrackKey,
    reply: &Conntrack,
    now: u64,
    patient: bool,
) -> bool {
    let Some(entry) = entry else {
        return false;
    };
    // SAFETY: as in `update`.
    unsafe {
        if is_replaceable(key, &*entry, reply, now, patient) {
            *entry = *reply;
            return true;
        }
    }
    false
}

/// Another source port for a flow whose tuple is taken.
#[inline(always)]
pub fn other_port(key: &ConntrackKey, attempt: u32) -> Be16 {
    let spread = hash::mix(key.saddr.raw() ^ attempt, u32::from(key.sport.raw()));
    Be16::new((PORT_MIN + (spread & 0x3fff)) as u16)
}

/// Writes an entry of a new flow.
///
/// # Errors
/// [`Reason::ConntrackFull`] if the map takes no entry; with [`BPF_NOEXIST`] also if there is one.
#[inline(always)]
pub fn open(key: &ConntrackKey, entry: &Conntrack, flags: u32) -> Result<(), Reason> {
    CT_NEW.insert(key, entry, u64::from(flags)).map_err(|_| Reason::ConntrackFull)
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::{maps::TCP_SEEN_SYN, wire::PROTO_TCP};

    fn flow() -> Flow {
        Flow {
            key: ConntrackKey {
                saddr: Be32::from_octets([10, 0, 1, 2]),
                daddr: Be32::from_octets([10, 0, 1, 9]),
                sport: Be16::new(40000),
                dport: Be16::new(80),
                vni: 4097,
                proto: PROTO_TCP,
                scope: [0; 3],
            },
            transport: 34,
            flags: TCP_SEEN_SYN,
            part: 0,
        }
    }

    fn target(ip: [u8; 4]) -> Target {
        Target {
            service: 7,
            backend: 8,
            vni: 4097,
            ip: Be32::from_octets(ip),
            port: Be16::new(8080),
            idle: 9,
            via: VIA_VIP,
        }
    }

    fn forward_to(ip: [u8; 4], flow: &Flow) -> Conntrack {
        let mut entry = Conntrack::default();
        forward_entry(flow, &target(ip), 5, &mut entry);
        entry
    }

    #[test]
    fn a_reply_is_translated_back_to_the_frontend() {
        let flow = flow();
        let forward = forward_to([10, 0, 1, 3], &flow);
        assert_eq!((forward.daddr.octets(), forward.dport.get()), ([10, 0, 1, 3], 8080));
        assert_eq!((forward.saddr, forward.sport), (flow.key.saddr, flow.key.sport));

        let key = reply_key(&flow.key, &forward);
        assert_eq!((key.saddr.octets(), key.sport.get()), ([10, 0, 1, 3], 8080));
        assert_eq!((key.daddr, key.dport), (flow.key.saddr, flow.key.sport));

        let reply = reply_entry(&flow.key, &forward, 5);
        assert_eq!((reply.saddr, reply.sport), (flow.key.daddr, flow.key.dport));
        assert_eq!((reply.daddr, reply.dport), (flow.key.saddr, flow.key.sport));
    }

    #[test]
    fn a_backend_that_reaches_itself_sees_the_vip_as_the_client() {
        let flow = flow();
        let forward = forward_to([10, 0, 1, 2], &flow);
        assert_eq!(forward.saddr, flow.key.daddr);
        let key = reply_key(&flow.key, &forward);
        assert_eq!((key.saddr, key.daddr), (flow.key.saddr, flow.key.daddr));
        let reply = reply_entry(&flow.key, &forward, 5);
        assert_eq!((reply.saddr, reply.daddr), (flow.key.daddr, flow.key.saddr));
    }

    #[test]
    fn the_same_address_on_another_network_is_no_hairpin() {
        let mut flow = flow();
        flow.key.vni = 0;
        let forward = forward_to([10, 0, 1, 2], &flow);
        assert_eq!(forward.saddr, flow.key.saddr);
    }
}
