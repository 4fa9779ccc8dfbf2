//! A frame from the tunnel, under any outer headers: to an endpoint of this node, to a group, or of
//! a translated flow.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be32, Reason,
    maps::{
        ENDPOINT_FLAG_BACKEND, ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint, EndpointKey, PeerKey,
    },
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4},
};

use crate::{
    family::V4,
    forward::deliver::deliver,
    maps::{cache, work::area},
    observe::Party,
    packet::{
        ecn,
        frame::{ETH_LEN, is_gso, load},
        ipv4::check_ipv4,
    },
    tunnel::head_end,
    walk::{
        tunnel::{Inner, Way, from_outside, reply, to_client},
        tunnel6,
    },
};

/// Handles a frame of network `receiver.vni` from node `sender`, under an outer TOS byte. `outer`
/// bytes of outer headers are in front, none if the kernel's device has removed them. The verifier
/// needs a constant there.
#[inline(always)]
pub fn accept(
    ctx: &TcContext,
    (sender, outer_tos): (Be32, u8),
    outer: usize,
    receiver: &mut Party,
) -> Way {
    let vni = receiver.vni;
    let ethernet: Ethernet = load(ctx, outer)?;
    match ethernet.ethertype.get() {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_IPV6 => return tunnel6::receive(ctx, (sender, outer_tos), outer, receiver),
        _ => return Err(Reason::UnsupportedProtocol.into()),
    }
    let mut ip: Ipv4 = load(ctx, outer + ETH_LEN)?;
    check_ipv4(&ip, ctx.len() - (outer + ETH_LEN) as u32, is_gso(ctx))?;
    ecn::combine(ctx, outer_tos, &mut ip, outer + ETH_LEN)?;
    let inner = Inner::<V4> { ctx, vni, sender, outer, ip };
    match cache::endpoint(&EndpointKey { vni, ip: ip.daddr() }) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL => {
            receiver.counter = endpoint.counter;
            to_local(&inner, &endpoint)
        }
        _ if ethernet.dst.is_group() => {
            let source = head_end::source(&PeerKey { vni, node: sender }, &ethernet, &ip)?;
            inner.pop(false)?;
            Ok(head_end::receive(ctx, vni, &Ethernet { src: source, ..ethernet })?)
        }
        _ => to_client(&inner),
    }
}

/// Handles a frame to an endpoint of this node, from another endpoint of the network, or from a
/// client outside whose flow another node has translated.
#[inline(always)]
fn to_local(inner: &Inner<'_, V4>, endpoint: &Endpoint) -> Way {
    let Inner { ctx, vni, sender, ip, .. } = inner;
    let Some(from) = cache::endpoint(&EndpointKey { vni: *vni, ip: ip.saddr() }) else {
        return from_outside(inner, endpoint);
    };
    if from.kind != ENDPOINT_REMOTE || from.node != *sender {
        return Err(Reason::SpoofedInnerSource.into());
    }
    if from.flags & ENDPOINT_FLAG_BACKEND != 0 && !inner.is_tagged() {
        let work = area()?;
        if inner.is_reply(work) {
            return reply(inner, work);
        }
    }
    inner.pop(false)?;
    Ok(deliver(ctx, endpoint, from.mac, Reason::Decapsulated)?)
}
