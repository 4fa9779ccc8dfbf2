//! `tunnel_flow6`: IPv6 packets from the tunnel that may belong to a translated flow. The program
//! of the interface has checked the packet and left it unchanged.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    maps::{ENDPOINT_LOCAL, ENDPOINT_REMOTE},
    wire::ETHERTYPE_IPV6,
};

use crate::{
    family::V6,
    forward::deliver::deliver_as,
    maps::{endpoint::find6, work::area},
    observe::Party,
    outcome::{Outcome, Stop},
    packet::frame::pull,
    tunnel::{
        fallback,
        peers::{self, check_peer},
        underlay,
    },
    walk::tunnel::{Inner, Way, from_outside, reply, to_client},
};

/// Bytes of headers that are read directly: outer headers of either family, Ethernet, IPv6 and TCP.
const HEADERS: u32 = 70 + 74;

/// Handles the packet that the program of the interface has left in the work area.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, HEADERS);
    let inner = {
        let work = &area()?.ipv6;
        let outer = work.outer as usize;
        Inner::<V6> { ctx, vni: work.vni, sender: work.sender, outer, ip: () }
    };
    receiver.vni = inner.vni;
    let stop = match accept(&inner, receiver) {
        Ok(verdict) => return Ok(verdict),
        Err(stop) => stop,
    };
    // A packet of a non-peer is dropped as such, before any other fault. On an IPv6 underlay the
    // sender's number proves that it is a node.
    if !underlay::is_ipv6()
        && let Err(non_peer) = check_peer(inner.sender)
    {
        *receiver = Party::receiver();
        return Err(non_peer);
    }
    match stop {
        Stop::ToKernel => fallback::leave(ctx),
        Stop::Drop(reason) => Err(peers::classify(inner.vni, inner.sender, reason)),
    }
}

#[inline(always)]
fn accept(inner: &Inner<'_, V6>, receiver: &mut Party) -> Way {
    let mut work = area()?;
    let destination = work.ipv6.ip.dst;
    if find6(&mut work.ipv6, inner.vni, destination) != Some(ENDPOINT_LOCAL) {
        return to_client(inner);
    }
    let endpoint = work.ipv6.endpoint;
    receiver.counter = endpoint.counter;
    let source = work.ipv6.ip.src;
    if find6(&mut work.ipv6, inner.vni, source) != Some(ENDPOINT_REMOTE) {
        return from_outside(inner, &endpoint);
    }
    // From a backend: a reply to a client of this node, or a flow of its own.
    let from = work.ipv6.endpoint.mac;
    if inner.is_reply(work) {
        return reply(inner, work);
    }
    inner.pop(false)?;
    Ok(deliver_as(ETHERTYPE_IPV6, inner.ctx, &endpoint, from, Reason::Decapsulated)?)
}
