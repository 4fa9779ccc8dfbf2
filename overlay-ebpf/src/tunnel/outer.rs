//! Whether a packet is a tunnel packet, by its outer headers, on the underlay and on other
//! interfaces.

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

/// Offset of the UDP header behind an IPv6 header without extension headers.
pub const UDP6: usize = ICMPV6;
/// Number of the fragment header (RFC 8200, section 4.5); its second half word holds the offset.
const FRAGMENT: u8 = 44;

/// Whether the packet is VXLAN to this node. Fragments and headers with options go through the
/// kernel's vxlan device instead.
#[inline(always)]
pub fn is_tunnel(config: &Config, ip: &Ipv4, udp: &Udp) -> bool {
    !underlay::is_ipv6()
        && ip.protocol == PROTO_UDP
        && udp.dest == config.vxlan_port
        && ip.daddr() == config.vtep
        && !ip.is_fragment()
}

/// Whether the packet is VXLAN to this node. Fragments and extension headers go through the
/// kernel's vxlan device instead.
#[inline(always)]
pub fn is_tunnel6(config: &Config, ip: &Ipv6, udp: Result<Udp, Reason>) -> bool {
    ip.next_header == PROTO_UDP
        && ip.dst == config.vtep6
        && udp.is_ok_and(|udp| udp.dest == config.vxlan_port)
}

/// Whether the kernel's vxlan device would accept the packet, on an interface other than the
/// underlay's, as a tunnel packet or its first fragment. Only packets from the underlay may use the
/// nodes' addresses.
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
    // The device listens on all addresses of the host.
    udp.is_ok_and(|udp| udp.dest == config.vxlan_port)
        && (ip.daddr() == config.vtep || lookup(&LOCAL_ADDRS, &ip.daddr()).is_some())
}

/// As [`is_to_vtep4`], with or without extension headers.
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
            // Later fragments have no effect without their first one.
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
    // No sender needs so many extension headers. The packet counts as one for the device.
    true
}
