//! The outer headers of tunnel packets: whether a packet is one, on the underlay and elsewhere.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Reason,
    maps::Config,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6, PROTO_UDP, Udp},
};

use crate::{
    maps::{LOCAL_ADDRS, lookup, work::work},
    packet::{
        frame::{ETH_LEN, load, load_at, load_into},
        ipv6::{ICMPV6, MOST_EXTENSIONS, extension_length, extension_unit},
    },
    tunnel::underlay,
};

/// Offset of the UDP6 header behind an IPv6 header without extension headers.
pub const UDP6: usize = ICMPV6;
/// A fragment header (RFC 8200, section 4.5), whose second half word has the offset.
const FRAGMENT: u8 = 44;

/// Whether the packet is VXLAN to this node. What is not seen as that here (fragments, headers with
/// options) comes back from the kernel's vxlan device.
#[inline(always)]
pub fn is_tunnel(config: &Config, ip: &Ipv4, udp: &Udp) -> bool {
    !underlay::is_ipv6()
        && ip.protocol == PROTO_UDP
        && udp.dest == config.vxlan_port
        && ip.daddr() == config.vtep
        && !ip.is_fragment()
}

/// Whether the packet is VXLAN to this node. What is not seen as that here (fragments, extension
/// headers) comes back from the kernel's vxlan device.
#[inline(always)]
pub fn is_tunnel6(config: &Config, ip: &Ipv6, udp: Result<Udp, Reason>) -> bool {
    ip.next_header == PROTO_UDP
        && ip.dst == config.vtep6
        && udp.is_ok_and(|udp| udp.dest == config.vxlan_port)
}

/// Whether the packet, on an interface that is not the underlay's, is or begins what the kernel's vxlan
/// device would take for a tunnel packet: only the underlay is trusted with the nodes' addresses.
#[inline(always)]
pub fn is_to_vtep(ctx: &TcContext, config: &Config) -> bool {
    if underlay::is_ipv6() { is_to_vtep6(ctx, config) } else { is_to_vtep4(ctx, config) }
}

#[inline(always)]
fn is_to_vtep4(ctx: &TcContext, config: &Config) -> bool {
    let (Ok(ethernet), Ok(ip)) = (load::<Ethernet>(ctx, 0), load::<Ipv4>(ctx, ETH_LEN)) else {
        return false;
    };
    if ethernet.ethertype.get() != ETHERTYPE_IPV4
        || ip.protocol != PROTO_UDP
        || ip.is_later_fragment()
    {
        return false;
    }
    let udp = load_at::<Udp>(ctx, ETH_LEN + usize::from(ip.version_ihl & 0xf) * 4);
    // The device listens on all of the host's addresses.
    udp.is_ok_and(|udp| udp.dest == config.vxlan_port)
        && (ip.daddr() == config.vtep || lookup(&LOCAL_ADDRS, &ip.daddr()).is_some())
}

/// As above; extension headers or not.
#[inline(always)]
fn is_to_vtep6(ctx: &TcContext, config: &Config) -> bool {
    let Ok(ethernet) = load::<Ethernet>(ctx, 0) else { return false };
    let Ok(work) = work() else { return false };
    let ip = &mut work.ipv6.ip;
    if ethernet.ethertype.get() != ETHERTYPE_IPV6
        || load_into(ctx, ETH_LEN, ip).is_err()
        || ip.dst != config.vtep6
    {
        return false;
    }
    let (mut next, mut at) = (ip.next_header, UDP6);
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
    // No sender needs so many.
    true
}
