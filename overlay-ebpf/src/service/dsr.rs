//! Direct server return (DSR): replies of published ports that leave from the backend's node. The
//! client's packets carry the frontend to that node. It sends the backend's replies directly to the
//! client, in the name of the ingress node.
//!
//! The first answer, SYN and FIN segments and resets still go through the ingress node. So it can
//! tell a flow with an answer from a flood, and a flow that was reset from one that continues.

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

/// On the ingress node: the Ethernet header of a client's packet inside the tunnel. It carries the
/// frontend with DSR, and is `otherwise` without. It is `otherwise` too if this node has changed
/// the client's port, which only this node can restore.
#[inline(always)]
pub fn header(work: &Work, otherwise: Ethernet) -> Ethernet {
    if !carries_frontend(work) {
        return otherwise;
    }
    let key = &work.flow.key;
    Frontend { address: key.daddr, port: key.dport }.header()
}

/// As [`header`], for an IPv6 packet to address `frontend`. The id of that address is known to this
/// node only.
#[inline(always)]
pub fn header6(work: &Work, frontend: &Ip6, otherwise: Ethernet) -> Ethernet {
    if !carries_frontend(work) {
        return otherwise;
    }
    Frontend { address: hash::of_node(frontend), port: work.flow.key.dport }.header6()
}

/// Whether packets of the flow in `work` carry the frontend to the backend's node.
#[inline(always)]
fn carries_frontend(work: &Work) -> bool {
    let Work { flow, entry, .. } = work;
    entry.flags & DSR != 0 && entry.sport == flow.key.sport
}

/// On the backend's node: sets the route of `entry`, of the replies `key` to `flow`, as the
/// client's packet says. `frontend` is its [`Frontend::bits`], for IPv6 the result of
/// [`dsr6::frontend`].
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

/// Whether this node may answer under the frontend. It trusts another node only for ports of
/// services with DSR, and only for addresses that a host can have and that are not its own. A
/// client that is this host, or is in a network of the cluster, cannot be reached from here.
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

/// Whether a host can have the address: not "this network", loopback, a group or class E (RFC 1122,
/// section 3.2.1.3).
#[inline(always)]
fn is_a_hosts(address: Be32) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

/// Whether an address is neither one of this host nor in a network of the cluster.
#[inline(always)]
fn is_elsewhere(address: Be32) -> bool {
    lookup(&LOCAL_ADDRS, &address).is_none() && SUBNETS.get(&Key::new(32, address)).is_none()
}

/// Whether a backend's reply, with its reverse entry in `work.entry`, goes directly to the client.
#[inline(always)]
pub fn is_dsr_reply(work: &Work) -> bool {
    const KNOWN: u32 = DSR | ANSWERED;
    let Work { flow, entry, .. } = work;
    entry.flags & KNOWN == KNOWN
        && flow.part != PART_QUOTED
        && flow.flags & (TCP_SEEN_SYN | TCP_SEEN_FIN | TCP_SEEN_RST) == 0
}

/// Sends a reply directly to the client.
///
/// # Errors
/// Those of [`route_egress`], which leave the packet as sent, and those of [`nat::translate`].
#[inline(always)]
pub fn send(ctx: &TcContext, ip: &Ipv4, work: &Work) -> Outcome {
    // Routed first: without a route the packet must stay unchanged.
    let routed = route_egress(ctx, work.entry.saddr, work.entry.daddr)?;
    nat::translate(ctx, ip, usize::from(work.flow.transport), work)?;
    Ok(routed.because(Reason::SentDsr))
}
