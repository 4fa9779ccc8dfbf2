//! VXLAN on an IPv6 underlay: pushing and popping 70 bytes.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    },
    programs::TcContext,
};
use overlay_common::{
    Be16, Reason, VXLAN_OVERHEAD6, hash,
    maps::{CachedNextHop, Config},
    wire::{
        ETHERTYPE_IPV4, Encapsulation6, Ethernet, Ipv4, Ipv6, PROTO_UDP, PackedIpv6, Udp, Vxlan,
    },
};

use crate::{
    maps::work::scratch,
    outcome::Stop,
    packet::frame::{ETH_LEN, store_rehash},
    tunnel::vxlan::{GSO, Outer, ROOM_MAC, TTL, length16},
};

/// Offset of the inner Ethernet header.
pub const INNER6: usize = VXLAN_OVERHEAD6 as usize;

/// Flags as in `tunnel::vxlan`.
const PUSH: u64 = GSO
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | ((ETH_LEN as u64) << 56);

/// Outer headers over IPv6, 70 bytes.
pub struct Outer6;

impl Outer for Outer6 {
    const OVERHEAD: u32 = VXLAN_OVERHEAD6;
    const PUSH: u64 = PUSH;

    #[inline(always)]
    fn write(
        ctx: &TcContext,
        way: (&Config, &CachedNextHop),
        tunnel: (u32, u32, u8),
        inner: (&Ethernet, u32),
    ) -> Result<(), Reason> {
        let headers = &mut scratch()?.headers6;
        fill(headers, way, tunnel, inner);
        store_rehash(ctx, 0, headers)
    }
}

/// Fills in the outer headers of an inner frame of `inner.1` bytes. `tunnel` is the VNI, the flow's
/// hash and the outer traffic class.
#[inline(always)]
fn fill(
    headers: &mut Encapsulation6,
    (config, hop): (&Config, &CachedNextHop),
    tunnel: (u32, u32, u8),
    (inner, length): (&Ethernet, u32),
) {
    let (vni, flow_hash, class) = tunnel;
    let udp_length = length16(length + (size_of::<Udp>() + size_of::<Vxlan>()) as u32);
    headers.ethernet = hop.ethernet;
    headers.ipv6 = PackedIpv6 {
        // The flow label comes from the flow's hash (RFC 6438), as the source port does.
        version_class_flow: [
            Be16::new(0x6000 | (class as u16) << 4 | (flow_hash >> 16) as u16 & 0xf),
            Be16::new(flow_hash as u16),
        ],
        payload_length: udp_length,
        next_header: PROTO_UDP,
        hop_limit: TTL,
        src: config.vtep6.halves(),
        dst: hop.vtep6.halves(),
    };
    headers.udp = Udp {
        source: Be16::new(hash::source_port(flow_hash)),
        dest: config.vxlan_port,
        length: udp_length,
        // Allowed for tunnels over IPv6 (RFC 6935), under the conditions of RFC 6936, section 5:
        // the VNI and both addresses are checked, and the inner packet has its own checksums.
        checksum: Be16::ZERO,
    };
    headers.vxlan = Vxlan::new(vni);
    headers.inner = *inner;
}

/// Removes the outer headers in front of an inner packet of `ethertype`. The outer Ethernet header
/// is then in front, and the caller writes another one. `flags` are [`Config::decap_flags`].
///
/// The kernel goes by the packet's protocol in its metadata, and shrinking changes that from Linux
/// 6.3 on only. So the packet becomes an IPv4 packet first if the inner one is IPv4. That pops 20
/// bytes, by which the IPv6 header is longer.
///
/// # Errors
/// [`Stop::ToKernel`] leaves the packet unchanged. [`Reason::RewriteRefused`] does not; it happens
/// for aggregates other than TCP's and UDP's, which the caller must pass to the kernel before.
#[inline(always)]
pub fn remove(ctx: &TcContext, ethertype: u16, flags: u32) -> Result<(), Stop> {
    const LONGER: u32 = (size_of::<Ipv6>() - size_of::<Ipv4>()) as u32;
    let flags = GSO | u64::from(flags);
    if ethertype != ETHERTYPE_IPV4 {
        return ctx
            .adjust_room(-(VXLAN_OVERHEAD6 as i32), ROOM_MAC, flags)
            .map_err(|_| Stop::ToKernel);
    }
    ctx.change_proto(ETHERTYPE_IPV4.to_be(), 0).map_err(|_| Stop::ToKernel)?;
    ctx.adjust_room(-((VXLAN_OVERHEAD6 - LONGER) as i32), ROOM_MAC, flags)
        .map_err(|_| Stop::Drop(Reason::RewriteRefused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::{Ip6, Mac, wire::ETHERTYPE_IPV6};

    #[test]
    fn outer_headers_say_class_label_and_lengths() {
        let ip6 = |last: u16| Ip6::from(core::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        let config = Config { vtep6: ip6(10), vxlan_port: Be16::new(4789), ..Config::default() };
        let ethernet = Ethernet {
            dst: Mac::new([1; 6]),
            src: Mac::new([3; 6]),
            ethertype: Be16::new(ETHERTYPE_IPV6),
        };
        let hop = CachedNextHop { vtep6: ip6(11), ethernet, ..CachedNextHop::default() };
        let mut headers = Encapsulation6::default();
        fill(&mut headers, (&config, &hop), (4097, 0x1234_5678, 3), (&ethernet, 98));
        let Encapsulation6 { ipv6, udp, vxlan, .. } = headers;
        assert_eq!(ipv6.version_class_flow.map(Be16::get), [0x6034, 0x5678]);
        assert_eq!((ipv6.payload_length.get(), udp.length.get()), (98 + 16, 98 + 16));
        assert_eq!((ipv6.next_header, ipv6.hop_limit), (17, 64));
        assert_eq!((ipv6.src, ipv6.dst), (ip6(10).halves(), ip6(11).halves()));
        assert_eq!((vxlan.vni(), udp.checksum), (Some(4097), Be16::ZERO));
    }
}
