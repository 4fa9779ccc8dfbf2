//! `from_underlay` and `from_underlay6`: packets from the host's NIC. Tunnel packets are checked,
//! decapsulated and delivered, and packets to published ports are balanced. Anything else goes to
//! the host. The two programs differ in the outer headers only.

use core::mem::offset_of;

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Be32, Reason, VXLAN_OVERHEAD, VXLAN_OVERHEAD6,
    maps::{Config, TAIL_CALL_HOST},
    wire::{ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet, Udp, Vxlan},
};

use crate::{
    maps::{config, tail_call, work::area},
    observe::Party,
    outcome::{Outcome, Stop, Verdict},
    packet::{
        ecn,
        frame::{ETH_LEN, load, load_into, pull},
        ipv4::IPV4_LEN,
    },
    tunnel::{
        fallback,
        outer::{UDP6, is_tunnel, is_tunnel6},
        peers::{self, check_other, check_peer, vni_of},
        underlay,
        vxlan::INNER,
        vxlan6::INNER6,
    },
    walk::{
        decap,
        host4::{self, HEADERS, not_ipv4, outer_headers},
        tunnel::Way,
    },
};

/// Handles a packet from the NIC on an IPv4 underlay.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, VXLAN_OVERHEAD + HEADERS);
    let (Some((ip, udp)), Some(config)) = (outer_headers(ctx), config()) else {
        return not_ipv4(ctx);
    };
    if is_tunnel(config, &ip, &udp) {
        return from_tunnel::<false>(ctx, config, (ip.saddr(), ip.tos), receiver);
    }
    host4::receive(ctx, config, &ip, &udp)
}

/// Handles a packet from the NIC on an IPv6 underlay.
#[inline(always)]
pub fn receive6(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, VXLAN_OVERHEAD6 + HEADERS);
    let Some(config) = config() else {
        return Ok(Verdict::PASS);
    };
    let ethernet: Ethernet = load(ctx, 0)?;
    if ethernet.ethertype.get() == ETHERTYPE_IPV6 {
        let outer = &mut area()?.ipv6.ip;
        load_into(ctx, ETH_LEN, outer)?;
        if !is_tunnel6(config, outer, load::<Udp>(ctx, UDP6)) {
            // If that program is missing, the host still gets the packet.
            tail_call(ctx, TAIL_CALL_HOST);
            return Ok(Verdict::PASS);
        }
        // This node's own address is not among those of the other nodes.
        let sender = underlay::node_of(&outer.src).ok_or(Reason::NotPeer)?;
        let [first, second, ..] = outer.version_class_flow;
        let class = ecn::class(Be16::new(u16::from_be_bytes([first, second])));
        return from_tunnel::<true>(ctx, config, (sender, class), receiver);
    }
    match outer_headers(ctx) {
        Some((ip, udp)) => host4::receive(ctx, config, &ip, &udp),
        None => Ok(Verdict::PASS),
    }
}

/// Handles a tunnel packet. Most packets come from an endpoint on the sending node, so that one
/// look-up shows both the endpoint and that the node is in the cluster. Only the others need a
/// look-up in `peers`. `IPV6` is the family of the underlay; with it, `sender` is known to be a
/// node of the cluster.
#[inline(always)]
fn from_tunnel<const IPV6: bool>(
    ctx: &TcContext,
    config: &Config,
    (sender, tos): (Be32, u8),
    receiver: &mut Party,
) -> Outcome {
    check_other(config, sender)?;
    let stop = match under_headers::<IPV6>(ctx, (sender, tos), receiver) {
        Ok(verdict) => return Ok(verdict),
        Err(stop) => stop,
    };
    // A packet of a non-peer is dropped as such, before any other fault.
    if !IPV6 && let Err(non_peer) = check_peer(sender) {
        *receiver = Party::receiver();
        return Err(non_peer);
    }
    match stop {
        Stop::ToKernel => fallback::leave(ctx),
        Stop::Drop(reason) => Err(peers::classify(receiver.vni, sender, reason)),
    }
}

/// Handles a packet with the outer headers in front.
#[inline(always)]
fn under_headers<const IPV6: bool>(ctx: &TcContext, from: (Be32, u8), receiver: &mut Party) -> Way {
    let (udp, inner) = if IPV6 { (UDP6, INNER6) } else { (ETH_LEN + IPV4_LEN, INNER) };
    let vxlan: Vxlan = load(ctx, udp + size_of::<Udp>())?;
    receiver.vni = vni_of(&vxlan)?;
    let ethertype: Be16 = load(ctx, inner + offset_of!(Ethernet, ethertype))?;
    if ethertype.get() == ETHERTYPE_VLAN {
        return Err(Stop::ToKernel);
    }
    decap::accept(ctx, from, inner, receiver)
}
