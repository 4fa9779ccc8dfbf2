//! Replies of published ports that leave from the backend's node: who asked what travels with the client's
//! packets, and what the backend answers goes straight to the client in the name of the node that was asked.
//!
//! The first answer, openings and resets still go back through that node, so that it knows a flow that has an
//! answer from a flood, and one that has been reset from one that goes on.

use aya_ebpf::{btf_maps::lpm_trie::Key, programs::TcContext};
use overlay_common::{
    Be32, Frontend, Ip6, Reason, hash,
    maps::{
        ANSWERED, Conntrack, ConntrackKey, DSR, SERVICE_DSR, TCP_SEEN_FIN, TCP_SEEN_RST,
        TCP_SEEN_SYN, VNI_FLAG_IPV6,
    },
    wire::{Ethernet, Ipv4},
};

use crate::{
    forward::route::route_egress,
    maps::{
        LOCAL_ADDRS, SERVICES, SUBNETS, lookup,
        work::{Flow, PART_QUOTED, Work},
    },
    nat,
    outcome::Outcome,
    service::{dsr6, published},
};

/// On the node that was asked: the header that a client's packet to a backend elsewhere has inside the tunnel,
/// `otherwise` for one whose replies come back. They also do where the client has another port here, which
/// only this node knows.
#[inline(always)]
pub fn header(work: &Work, otherwise: Ethernet) -> Ethernet {
    if !carries_frontend(work) {
        return otherwise;
    }
    let key = &work.flow.key;
    Frontend { address: key.daddr, port: key.dport }.header()
}

/// As [`header`], of an IPv6 packet to the address `asked`, whose number is this node's own.
#[inline(always)]
pub fn header6(work: &Work, frontend: &Ip6, otherwise: Ethernet) -> Ethernet {
    if !carries_frontend(work) {
        return otherwise;
    }
    Frontend { address: hash::of_node(frontend), port: work.flow.key.dport }.header6()
}

/// Whether the backend's node is told what the client of the flow in `work` asked.
#[inline(always)]
fn carries_frontend(work: &Work) -> bool {
    let Work { flow, entry, .. } = work;
    entry.flags & DSR != 0 && entry.sport == flow.key.sport
}

/// On the backend's node: has `entry`, of the replies `key` to `flow`, go the way that the client's packet says:
/// `asked` is [`Frontend::bits`] of it, for IPv6 what [`dsr6::asked`] made of that.
#[inline(always)]
pub fn settle(entry: &mut Conntrack, key: &ConntrackKey, flow: &Flow, frontend: u64) {
    let is_dsr = entry.flags & DSR != 0;
    match Frontend::from_bits(frontend) {
        None if !is_dsr => {}
        Some(frontend)
            if is_dsr && entry.saddr == frontend.address && entry.sport == frontend.port => {}
        Some(frontend) if may_answer(flow, frontend) => {
            entry.saddr = frontend.address;
            entry.sport = frontend.port;
            entry.flags |= DSR;
        }
        _ => {
            entry.flags &= !DSR;
            entry.saddr = key.saddr;
            entry.sport = key.sport;
        }
    }
}

/// Whether this node answers for the port: a node that says so is believed for services that are like that,
/// and for no other port, and under no address that cannot be its own. Clients that are this host itself, or in
/// a network of the cluster, have no way from here.
#[inline(always)]
fn may_answer(flow: &Flow, frontend: Frontend) -> bool {
    let Some(published) = published::find(flow.key.proto, frontend.port) else { return false };
    let is_dsr = published.target == flow.key.dport
        && lookup(&SERVICES, &published.service).is_some_and(|s| s.flags & SERVICE_DSR != 0);
    if !is_dsr {
        return false;
    }
    if flow.key.vni & VNI_FLAG_IPV6 != 0 {
        return dsr6::may_answer(&published);
    }
    is_a_hosts(frontend.address) && is_elsewhere(frontend.address) && is_elsewhere(flow.key.saddr)
}

/// Whether a host can have the address: not "this network", loopback, a group or class E (RFC 1122, section
/// 3.2.1.3).
#[inline(always)]
fn is_a_hosts(address: Be32) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

/// Whether an address is neither this host's nor of a network of the cluster.
#[inline(always)]
fn is_elsewhere(address: Be32) -> bool {
    lookup(&LOCAL_ADDRS, &address).is_none() && SUBNETS.get(&Key::new(32, address)).is_none()
}

/// Whether a backend's reply, whose entry of the way back is in `work.entry`, goes straight to its client.
#[inline(always)]
pub fn is_dsr_reply(work: &Work) -> bool {
    const KNOWN: u32 = DSR | ANSWERED;
    let Work { flow, entry, .. } = work;
    entry.flags & KNOWN == KNOWN
        && flow.part != PART_QUOTED
        && flow.flags & (TCP_SEEN_SYN | TCP_SEEN_FIN | TCP_SEEN_RST) == 0
}

/// Sends a reply straight to its client.
///
/// # Errors
/// Those of [`route_egress`], with which the packet is as it was sent, and of [`nat::translate`].
#[inline(always)]
pub fn send(ctx: &TcContext, ip: &Ipv4, work: &Work) -> Outcome {
    // Routed first, because what does not get there from here must not have been changed.
    let routed = route_egress(ctx, work.entry.saddr, work.entry.daddr)?;
    nat::translate(ctx, ip, usize::from(work.flow.transport), work)?;
    Ok(routed.because(Reason::SentDsr))
}
