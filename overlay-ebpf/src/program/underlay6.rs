//! `from_underlay6`: what the host's NIC receives on an IPv6 underlay. Tunnel packets have other outer
//! headers; everything inside them, and published ports, are `underlay`'s.

use core::mem::offset_of;

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Be32, Reason, VXLAN_OVERHEAD6,
    maps::{CALL_HOST, Config},
    wire::{ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet, Ipv6, PROTO_UDP, Udp, Vxlan},
};

use crate::{
    maps::{config, work::work},
    observe::Party,
    outcome::{Outcome, Verdict},
    packet::{
        ecn,
        frame::{ETH_LEN, load, load_at, load_into, pull},
        ipv6::{ICMPV6, extension_length, extension_unit, go_on},
    },
    program::underlay::{HEADERS, accept, check_other, outer_headers, to_host, vni_of},
    tunnel::{fallback, peers, underlay, vxlan6::INNER6},
};

/// Offset of the UDP header behind an IPv6 header without extension headers.
const UDP: usize = ICMPV6;
/// More extension headers than any sender needs.
const MOST_EXTENSIONS: usize = 8;
/// A fragment header (RFC 8200, section 4.5), whose second half word has the offset.
const FRAGMENT: u8 = 44;

/// What the NIC receives.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, VXLAN_OVERHEAD6 + HEADERS);
    let Some(config) = config() else {
        return Ok(Verdict::Pass);
    };
    let ethernet: Ethernet = load(ctx, 0)?;
    if ethernet.ethertype.get() == ETHERTYPE_IPV6 {
        let outer = &mut work()?.ipv6.ip;
        load_into(ctx, ETH_LEN, outer)?;
        let udp = load::<Udp>(ctx, UDP);
        if !is_tunnel(config, outer, udp) {
            // Where there is none to go on with, the host is not cut off.
            let _ = go_on(ctx, CALL_HOST);
            return Ok(Verdict::Pass);
        }
        // No other node has this node's own address under its number.
        let sender = underlay::node_of(&outer.src).ok_or(Reason::NotPeer)?;
        let [first, second, ..] = outer.version_class_flow;
        let class = ecn::class(Be16::new(u16::from_be_bytes([first, second])));
        return from_tunnel(ctx, config, (sender, class), receiver);
    }
    match outer_headers(ctx) {
        Some((ip, udp)) => to_host(ctx, config, &ip, &udp),
        None => Ok(Verdict::Pass),
    }
}

/// Whether the packet is VXLAN to this node. What is not seen as that here (fragments, extension
/// headers) comes back from the kernel's vxlan device.
#[inline(always)]
fn is_tunnel(config: &Config, ip: &Ipv6, udp: Result<Udp, Reason>) -> bool {
    ip.next_header == PROTO_UDP
        && ip.dst == config.vtep6
        && udp.is_ok_and(|udp| udp.dest == config.vxlan_port)
}

/// As `underlay::from_tunnel`; that `sender` is a node of the cluster is known.
#[inline(always)]
fn from_tunnel(
    ctx: &TcContext,
    config: &Config,
    (sender, class): (Be32, u8),
    receiver: &mut Party,
) -> Outcome {
    check_other(config, sender)?;
    match under_headers(ctx, sender, class, receiver) {
        // Nobody says so after anything else has changed the packet.
        Err(Reason::TunnelRefused) => fallback::leave(ctx),
        Err(reason) => Err(peers::judge(receiver.vni, sender, reason)),
        outcome => outcome,
    }
}

#[inline(always)]
fn under_headers(ctx: &TcContext, sender: Be32, class: u8, receiver: &mut Party) -> Outcome {
    let vxlan: Vxlan = load(ctx, UDP + size_of::<Udp>())?;
    receiver.vni = vni_of(&vxlan)?;
    let ethertype: Be16 = load(ctx, INNER6 + offset_of!(Ethernet, ethertype))?;
    if ethertype.get() == ETHERTYPE_VLAN {
        return Err(Reason::TunnelRefused);
    }
    accept::<INNER6>(ctx, sender, class, receiver)
}

/// Whether the packet, on an interface that is not the underlay's, is or begins what the kernel's vxlan
/// device would take for a tunnel packet, extension headers or not.
#[inline(always)]
pub fn is_to_vtep(ctx: &TcContext, config: &Config) -> bool {
    let Ok(ethernet) = load::<Ethernet>(ctx, 0) else { return false };
    let Ok(work) = work() else { return false };
    let ip = &mut work.ipv6.ip;
    if ethernet.ethertype.get() != ETHERTYPE_IPV6
        || load_into(ctx, ETH_LEN, ip).is_err()
        || ip.dst != config.vtep6
    {
        return false;
    }
    let (mut next, mut at) = (ip.next_header, UDP);
    for _ in 0..MOST_EXTENSIONS {
        if next == PROTO_UDP {
            return load_at::<Udp>(ctx, at).is_ok_and(|udp| udp.dest == config.vxlan_port);
        }
        let Ok([following, length]) = load_at::<[u8; 2]>(ctx, at) else { return false };
        if next == FRAGMENT {
            // Later fragments are nothing without their first.
            match load_at::<Be16>(ctx, at + 2) {
                Ok(offset) if offset.get() & 0xfff8 == 0 => at += 8,
                _ => return false,
            }
        } else if let Some(unit) = extension_unit(next) {
            at += extension_length(unit, length);
        } else {
            return false;
        }
        next = following;
    }
    // Nobody needs so many.
    true
}
