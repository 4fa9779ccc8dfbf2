//! IPv6 from the tunnel: packets between endpoints are delivered here. A separate program
//! (`tunnel_flow6`) handles packets that may belong to translated flows.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be32, Reason,
    maps::{ENDPOINT_FLAG_BACKEND, ENDPOINT_LOCAL, ENDPOINT_REMOTE, TAIL_CALL_TUNNEL},
    wire::ETHERTYPE_IPV6,
};

use crate::{
    family::v6_pop,
    forward::deliver::deliver_as,
    maps::{endpoint::find6, tail_call, work::work},
    observe::Party,
    outcome::{Stop, Verdict, pack_stop, unpack_stop},
    packet::{
        ecn,
        frame::{ETH_LEN, is_gso, load_into, reject_vlan_tag},
        ipv6::check_ipv6,
    },
    walk::tunnel::Way,
};

/// Handles a frame of network `receiver.vni` with an IPv6 packet, from a node and under an outer
/// TOS byte. `outer` bytes of outer headers are in front, none if the kernel's device has removed
/// them.
#[inline(always)]
pub fn receive(
    ctx: &TcContext,
    (sender, outer_tos): (Be32, u8),
    outer: usize,
    receiver: &mut Party,
) -> Way {
    let packed = to_local_packed(ctx.skb.skb, receiver.vni, sender, outer_tos, outer);
    let work = &mut work()?.ipv6;
    receiver.counter = work.counter;
    let action = unpack_stop(packed)?;
    if work.is_flow != 0 {
        work.vni = receiver.vni;
        work.sender = sender;
        work.outer = outer as u32;
        tail_call(ctx, TAIL_CALL_TUNNEL);
        return Err(Reason::NotConfigured.into());
    }
    Ok(Verdict::delivered(action as i32, Reason::Decapsulated, receiver.counter))
}

#[inline(never)]
fn to_local_packed(
    skb: *mut __sk_buff,
    vni: u32,
    sender: Be32,
    outer_tos: u8,
    outer: usize,
) -> i64 {
    pack_stop(to_local(&TcContext::new(skb), (vni, sender), outer_tos, outer))
}

/// Delivers a packet from another endpoint of the network to an endpoint of this node. For other
/// packets, and those from a backend, it sets `is_flow` and leaves the packet unchanged: their
/// flows must be looked up.
#[inline(always)]
fn to_local(
    ctx: &TcContext,
    (vni, sender): (u32, Be32),
    outer_tos: u8,
    outer: usize,
) -> Result<u32, Stop> {
    let at = outer + ETH_LEN;
    let work = &mut work()?.ipv6;
    work.counter = 0;
    work.is_flow = 0;
    reject_vlan_tag(ctx)?;
    load_into(ctx, at, &mut work.ip)?;
    check_ipv6(&work.ip, ctx.len() - at as u32, is_gso(ctx))?;
    ecn::combine_ipv6(ctx, outer_tos, at)?;
    let destination = work.ip.dst;
    match find6(work, vni, destination) {
        Some(ENDPOINT_LOCAL) => {}
        None if !destination.is_link_local() && !destination.is_group() => {
            work.is_flow = 1;
            return Ok(0);
        }
        _ => return Err(Reason::NoEndpoint.into()),
    }
    let endpoint = work.endpoint;
    work.counter = endpoint.counter;
    let source = work.ip.src;
    match find6(work, vni, source) {
        Some(ENDPOINT_REMOTE) if work.endpoint.node == sender => {}
        None if !source.is_link_local() => {
            work.is_flow = 1;
            return Ok(0);
        }
        _ => return Err(Reason::SpoofedInnerSource.into()),
    }
    if work.endpoint.flags & ENDPOINT_FLAG_BACKEND != 0 && !source.is_link_local() {
        work.is_flow = 1;
        return Ok(0);
    }
    if outer != 0 {
        v6_pop(ctx, false)?;
    }
    let from = work.endpoint.mac;
    let delivered = deliver_as(ETHERTYPE_IPV6, ctx, &endpoint, from, Reason::Decapsulated)?;
    Ok(delivered.action() as u32)
}
