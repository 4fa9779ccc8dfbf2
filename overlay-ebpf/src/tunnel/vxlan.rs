//! VXLAN (RFC 7348) over IPv4: pushing and popping 50 bytes.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode,
    },
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Reason, VXLAN_OVERHEAD, checksum, hash,
    maps::{CachedNextHop, Config},
    wire::{
        ETHERTYPE_IPV6, Encapsulation, Ethernet, IPV4_DF, Ipv4, Ipv6, PROTO_TCP, PROTO_UDP, Udp,
        Vxlan,
    },
};

use crate::{
    maps::work::scratch,
    outcome::Stop,
    packet::frame::{ETH_LEN, is_gso, store_rehash},
};

/// Offset of the inner Ethernet header.
pub const INNER: usize = VXLAN_OVERHEAD as usize;

/// TTL of tunnel packets, as of the kernel's vxlan device and Docker.
pub const TTL: u8 = 64;

pub const ROOM_MAC: u32 = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
/// The containers' MTU leaves room for the tunnel headers, so segments keep their size.
pub const GSO: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;
/// Bits 56 to 63 hold the length of the inner Ethernet header (`BPF_F_ADJ_ROOM_ENCAP_L2`).
const PUSH: u64 = GSO
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | ((ETH_LEN as u64) << 56);

/// The four outer headers for an inner frame of `length` bytes, and the inner Ethernet header.
/// `tunnel` is the VNI, the flow's hash and the outer TOS byte.
#[inline(always)]
pub fn headers(
    config: &Config,
    outer: Ethernet,
    node: Be32,
    tunnel: (u32, u32, u8),
    inner: (Ethernet, u32),
) -> Encapsulation {
    let (vni, flow_hash, tos) = tunnel;
    let (inner, length) = inner;
    let udp_length = length + (size_of::<Udp>() + size_of::<Vxlan>()) as u32;
    let mut ipv4 = Ipv4 {
        version_ihl: 0x45,
        tos,
        total_length: length16(udp_length + size_of::<Ipv4>() as u32),
        id: Be16::ZERO,
        fragment: Be16::new(IPV4_DF),
        ttl: TTL,
        protocol: PROTO_UDP,
        checksum: Be16::ZERO,
        src: config.vtep.octets(),
        dst: node.octets(),
    };
    ipv4.checksum = header_checksum(&ipv4, config.vtep, node);
    Encapsulation {
        ethernet: outer,
        ipv4,
        udp: Udp {
            source: Be16::new(hash::source_port(flow_hash)),
            dest: config.vxlan_port,
            length: length16(udp_length),
            // IPv4 allows it, and every VXLAN sender does so (RFC 7348, section 5).
            checksum: Be16::ZERO,
        },
        vxlan: Vxlan::new(vni),
        inner,
    }
}

/// A length for a header, or 0 if it does not fit: aggregates get their lengths when they are
/// segmented.
#[inline(always)]
pub fn length16(length: u32) -> Be16 {
    if length > 0xffff { Be16::ZERO } else { Be16::new(length as u16) }
}

/// The checksum over the fields that are set in [`headers`].
#[inline(always)]
fn header_checksum(ip: &Ipv4, src: Be32, dst: Be32) -> Be16 {
    let sum = u64::from(u16::from_ne_bytes([ip.version_ihl, ip.tos]))
        + u64::from(ip.total_length.raw())
        + u64::from(ip.id.raw())
        + u64::from(ip.fragment.raw())
        + u64::from(u16::from_ne_bytes([ip.ttl, ip.protocol]))
        + u64::from(src.raw())
        + u64::from(dst.raw());
    Be16::from_raw(!checksum::fold(sum))
}

/// Outer headers of one family.
pub trait Outer {
    /// Their length in bytes, with the inner Ethernet header.
    const OVERHEAD: u32;
    /// Flags of `bpf_skb_adjust_room` for the push.
    const PUSH: u64;

    /// Writes them. `tunnel` is the VNI, the flow's hash and the outer TOS byte or traffic class;
    /// `inner` is the inner Ethernet header and the length of the inner frame in bytes.
    ///
    /// # Errors
    /// [`Reason::RewriteRefused`].
    fn write(
        ctx: &TcContext,
        way: (&Config, &CachedNextHop),
        tunnel: (u32, u32, u8),
        inner: (&Ethernet, u32),
    ) -> Result<(), Reason>;
}

/// Outer headers over IPv4, 50 bytes.
pub struct Outer4;

impl Outer for Outer4 {
    const OVERHEAD: u32 = VXLAN_OVERHEAD;
    const PUSH: u64 = PUSH;

    #[inline(always)]
    fn write(
        ctx: &TcContext,
        (config, hop): (&Config, &CachedNextHop),
        tunnel: (u32, u32, u8),
        (inner, length): (&Ethernet, u32),
    ) -> Result<(), Reason> {
        let scratch = scratch()?;
        scratch.headers = headers(config, hop.ethernet, hop.node, tunnel, (*inner, length));
        store_rehash(ctx, 0, &scratch.headers)
    }
}

/// Removes the four outer headers. The outer Ethernet header is then in front, and the caller
/// writes another one. `flags` are [`Config::decap_flags`].
///
/// # Errors
/// [`Stop::ToKernel`].
#[inline(always)]
pub fn remove(ctx: &TcContext, flags: u32) -> Result<(), Stop> {
    let flags = GSO | u64::from(flags);
    ctx.adjust_room(-(VXLAN_OVERHEAD as i32), ROOM_MAC, flags).map_err(|_| Stop::ToKernel)
}

/// As [`remove`], for an inner IPv6 packet. The kernel goes by the packet's protocol in its
/// metadata, not by the Ethernet header, and shrinking changes that from Linux 6.3 on only. So the
/// packet becomes an IPv6 packet first. That pushes 20 bytes, by which the IPv6 header is longer,
/// and they are removed with the rest.
///
/// # Errors
/// [`Stop::ToKernel`] leaves the packet unchanged. [`Reason::RewriteRefused`] does not; it happens
/// for aggregates other than TCP's and UDP's, which the caller must pass to the kernel before.
#[inline(always)]
pub fn remove_ipv6(ctx: &TcContext, flags: u32) -> Result<(), Stop> {
    const LONGER: u32 = (size_of::<Ipv6>() - size_of::<Ipv4>()) as u32;
    ctx.change_proto(ETHERTYPE_IPV6.to_be(), 0).map_err(|_| Stop::ToKernel)?;
    let flags = GSO | u64::from(flags);
    ctx.adjust_room(-((VXLAN_OVERHEAD + LONGER) as i32), ROOM_MAC, flags)
        .map_err(|_| Stop::Drop(Reason::RewriteRefused))
}

/// Passes aggregates to the kernel's device that cannot be decapsulated here, while the packet is
/// unchanged. For IPv4 the kernel refuses such aggregates itself, but for IPv6 it has changed the
/// packet by then (Linux 5.14). UDP aggregates would keep the mark of a tunnel on kernels without
/// [`Config::decap_flags`], as for IPv4.
///
/// # Errors
/// [`Stop::ToKernel`].
#[inline(always)]
pub fn leave_aggregate(ctx: &TcContext, protocol: u8, decap_flags: u32) -> Result<(), Stop> {
    let is_taken = protocol == PROTO_TCP || (protocol == PROTO_UDP && decap_flags != 0);
    if is_gso(ctx) && !is_taken { Err(Stop::ToKernel) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::{Mac, wire::ETHERTYPE_IPV4};

    fn config() -> Config {
        Config {
            vtep: Be32::from_octets([172, 16, 1, 10]),
            vxlan_port: Be16::new(4789),
            ..Config::default()
        }
    }

    fn some_headers(length: u32) -> Encapsulation {
        let outer = Ethernet {
            dst: Mac::new([1; 6]),
            src: Mac::new([3; 6]),
            ethertype: Be16::new(ETHERTYPE_IPV4),
        };
        let node = Be32::from_octets([172, 16, 1, 11]);
        headers(&config(), outer, node, (4097, 0x1234_5678, 3), (outer, length))
    }

    #[test]
    fn outer_lengths_count_what_follows_them() {
        let headers = some_headers(98);
        assert_eq!(headers.udp.length.get(), 98 + 16);
        assert_eq!(headers.ipv4.total_length.get(), 98 + 36);
        assert_eq!((headers.vxlan.vni(), headers.ipv4.tos), (Some(4097), 3));
        assert_eq!(headers.udp.checksum, Be16::ZERO);
        assert_eq!(headers.ipv4.fragment.get(), IPV4_DF);
    }

    #[test]
    fn the_outer_header_checksum_verifies_from_scratch() {
        for length in [60, 98, 1464, 65_000, 65_549] {
            let ip = some_headers(length).ipv4;
            let mut bytes = vec![ip.version_ihl, ip.tos];
            for word in [ip.total_length, ip.id, ip.fragment] {
                bytes.extend(word.raw().to_ne_bytes());
            }
            bytes.extend([ip.ttl, ip.protocol]);
            bytes.extend(ip.checksum.raw().to_ne_bytes());
            bytes.extend(ip.src);
            bytes.extend(ip.dst);
            assert_eq!(checksum::of_bytes(&bytes, 0), 0, "inner length {length}");
        }
    }

    #[test]
    fn a_length_over_64_kib_is_left_to_segmentation() {
        assert_eq!(some_headers(65_536).ipv4.total_length, Be16::ZERO);
        assert_eq!(some_headers(65_499).ipv4.total_length.get(), 65_535);
    }
}
