//! The entries of flows to the outside, one for each direction in [`CONNTRACK`]. A packet refreshes
//! the entry of the other direction too.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use overlay_common::{
    Be16, Be32, Reason, UNDERLAY_VNI, hash,
    maps::{
        ANSWERED, CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE, Conntrack, ConntrackKey,
        TCP_SEEN_RST,
    },
    wire::PROTO_UDP,
};

use crate::{
    clock::{RESOLUTION, now},
    maps::{
        CONNTRACK, LOCAL_ADDRS, config, lookup,
        work::{Flow, Work, scratch},
    },
    outcome,
    service::{
        conntrack::{reply_key, take_over},
        published,
    },
};

/// Number of source ports to try. If half of the ports are taken towards one destination, one new
/// flow in 65,536 finds none.
const PORT_TRIES: u32 = 16;

/// Creates both entries of `flow` with the source `address`, and copies that of the container's
/// direction to `forward`.
///
/// # Errors
/// [`Reason::MasqueradePortsExhausted`] if no port is free, [`Reason::ConntrackFull`] if the map
/// takes no entry.
#[inline(always)]
pub fn open(flow: &Flow, address: Be32, forward: &mut Conntrack) -> Result<(), Reason> {
    outcome::unpack(open_packed(flow, address, forward)).map(|_| ())
}

#[inline(never)]
fn open_packed(flow: &Flow, address: Be32, forward: &mut Conntrack) -> i64 {
    outcome::pack(try_open(flow, address, forward).map(|()| 0))
}

#[inline(always)]
fn try_open(flow: &Flow, address: Be32, forward: &mut Conntrack) -> Result<(), Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let now = now();
    *forward = forward_entry(flow, address, now);
    let reply = &mut scratch()?.entry;
    *reply = reply_entry(&flow.key, now);
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        forward.sport = port(&flow.key, config.outside_ports, attempt);
        attempt += 1;
        if is_taken(flow.key.proto, forward.sport, config.vxlan_port) {
            continue;
        }
        let key = outer_key(&flow.key, forward);
        if CONNTRACK.insert(&key, reply, u64::from(BPF_NOEXIST)).is_ok()
            // A host has few ports for its connections to one server, and TIME-WAIT costs one SYN
            // only.
            || take_over(CONNTRACK.get_ptr_mut(&key), &key, reply, now, false)
        {
            return CONNTRACK
                .insert(&flow.key, &*forward, u64::from(BPF_ANY))
                .map_err(|_| Reason::ConntrackFull);
        }
    }
    Err(Reason::MasqueradePortsExhausted)
}

/// The source port of an attempt. A flow always has the same sequence of ports, so that a flow that
/// lost its entries can continue.
#[inline(always)]
fn port(key: &ConntrackKey, ports: [u16; 2], attempt: u32) -> Be16 {
    let [first, last] = ports;
    let count = u64::from(last.wrapping_sub(first)) + 1;
    let addresses = key.saddr.raw() ^ key.daddr.raw().rotate_left(16) ^ key.vni.rotate_left(8);
    let numbers = u32::from(key.sport.raw()) << 16 | u32::from(key.dport.raw());
    let spread = u64::from(hash::mix(addresses ^ attempt, numbers));
    Be16::new(first.wrapping_add(((spread * count) >> 32) as u16))
}

/// Whether a service or the tunnel uses this port of the host.
#[inline(always)]
fn is_taken(proto: u8, port: Be16, vxlan: Be16) -> bool {
    (proto == PROTO_UDP && port == vxlan) || published::find(proto, port).is_some()
}

#[inline(always)]
fn forward_entry(flow: &Flow, address: Be32, now: u64) -> Conntrack {
    Conntrack {
        saddr: address,
        daddr: flow.key.daddr,
        sport: Be16::ZERO,
        dport: flow.key.dport,
        vni: UNDERLAY_VNI,
        service: 0,
        backend: 0,
        node: Be32::ZERO,
        action: CONNTRACK_MASQUERADE,
        pad: 0,
        idle: 0,
        flags: flow.flags,
        generation: 0,
        last_seen: now,
    }
}

#[inline(always)]
fn reply_entry(key: &ConntrackKey, now: u64) -> Conntrack {
    Conntrack {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
        vni: key.vni,
        service: 0,
        backend: 0,
        node: Be32::ZERO,
        action: CONNTRACK_UNMASQUERADE,
        pad: 0,
        idle: 0,
        flags: 0,
        generation: 0,
        last_seen: now,
    }
}

/// The tuple of the answers to a flow with this entry.
#[inline(always)]
fn outer_key(key: &ConntrackKey, forward: &Conntrack) -> ConntrackKey {
    reply_key(key, forward)
}

/// Whether the packet changes the other entry: its time, or the end of the flow.
#[inline(always)]
fn is_news(work: &Work, now: u64) -> bool {
    let Work { flow, entry, .. } = work;
    now.wrapping_sub(entry.last_seen) > RESOLUTION || flow.flags & !entry.flags & TCP_SEEN_RST != 0
}

/// Updates the entry of the other direction with a packet of the container. Returns `false` if the
/// flow must be opened again: the host no longer has its address, or the other entry is lost.
#[inline(never)]
pub fn keep(work: &Work) -> bool {
    let now = now();
    if !is_news(work, now) {
        return true;
    }
    let Work { flow, entry, .. } = work;
    if lookup(&LOCAL_ADDRS, &entry.saddr).is_none() {
        return false;
    }
    let Some(reply) = CONNTRACK.get_ptr_mut(&outer_key(&flow.key, entry)) else {
        return false;
    };
    // SAFETY: the pointer comes from a successful look-up; the kernel never unmaps LRU entries. If
    // it reuses the entry at this moment, another flow gets a wrong time at worst.
    let reply = unsafe { &mut *reply };
    let ours = reply.action == CONNTRACK_UNMASQUERADE
        && reply.daddr == flow.key.saddr
        && reply.dport == flow.key.sport
        && reply.vni == flow.key.vni;
    if ours {
        reply.last_seen = now;
        reply.flags |= flow.flags & TCP_SEEN_RST;
    }
    ours
}

/// Updates both entries with an answer from outside.
#[inline(never)]
pub fn answered(work: &Work) {
    let now = now();
    let Work { flow, entry, .. } = work;
    let first = flow.key.proto == PROTO_UDP && entry.flags & ANSWERED == 0;
    if !first && !is_news(work, now) {
        return;
    }
    let inner = ConntrackKey {
        saddr: entry.daddr,
        daddr: entry.saddr,
        sport: entry.dport,
        dport: entry.sport,
        vni: entry.vni,
        proto: flow.key.proto,
        scope: [0; 3],
    };
    let state = if first { ANSWERED } else { flow.flags & TCP_SEEN_RST };
    if let Some(forward) = CONNTRACK.get_ptr_mut(&inner) {
        // SAFETY: as above.
        let forward = unsafe { &mut *forward };
        if forward.action == CONNTRACK_MASQUERADE
            && forward.saddr == flow.key.daddr
            && forward.sport == flow.key.dport
        {
            forward.last_seen = now;
            forward.flags |= state;
        }
    }
    if first && let Some(reply) = CONNTRACK.get_ptr_mut(&flow.key) {
        // SAFETY: as above.
        unsafe { (*reply).flags |= ANSWERED };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::wire::PROTO_TCP;

    fn flow() -> Flow {
        Flow {
            key: ConntrackKey {
                saddr: Be32::from_octets([10, 0, 1, 2]),
                daddr: Be32::from_octets([192, 0, 2, 9]),
                sport: Be16::new(40_000),
                dport: Be16::new(443),
                vni: 4097,
                proto: PROTO_TCP,
                scope: [0; 3],
            },
            transport: 34,
            flags: 0,
            part: 0,
        }
    }

    #[test]
    fn an_answer_leads_back_to_the_container() {
        let node = Be32::from_octets([172, 16, 1, 10]);
        let flow = flow();
        let forward = Conntrack { sport: Be16::new(61_007), ..forward_entry(&flow, node, 5) };
        let key = outer_key(&flow.key, &forward);
        assert_eq!((key.saddr, key.sport), (flow.key.daddr, flow.key.dport));
        assert_eq!((key.daddr, key.dport.get(), key.vni), (node, 61_007, UNDERLAY_VNI));
        let reply = reply_entry(&flow.key, 5);
        assert_eq!((reply.saddr, reply.sport), (flow.key.daddr, flow.key.dport));
        assert_eq!((reply.daddr, reply.dport), (flow.key.saddr, flow.key.sport));
        assert_eq!(reply.vni, flow.key.vni);
    }

    #[test]
    fn the_ports_tried_are_of_the_range_and_differ() {
        let key = flow().key;
        let tried = |ports| (0..PORT_TRIES).map(move |n| port(&key, ports, n).get());
        assert!(tried([61_000, 61_000]).all(|port| port == 61_000));
        assert!(tried([61_000, 65_535]).all(|port| port >= 61_000));
        let distinct: std::collections::HashSet<_> = tried([61_000, 65_535]).collect();
        assert!(distinct.len() > 12, "{distinct:?}");
        let all = tried([0, 65_535]).collect::<std::collections::HashSet<_>>();
        assert!(all.iter().any(|port| *port < 32_768) && all.iter().any(|port| *port >= 32_768));
    }
}
