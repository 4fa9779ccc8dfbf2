//! The tunnel (RFC 7348): pushing and popping 50 bytes.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        bpf_adj_room_mode,
    },
    helpers::bpf_get_hash_recalc,
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Reason, VXLAN_OVERHEAD, checksum, hash,
    maps::Config,
    wire::{Encapsulation, Ethernet, IPV4_DF, Ipv4, PROTO_TCP, PROTO_UDP, Udp, Vxlan},
};

use crate::{
    fallible,
    forward::{path_mtu, send},
    hop,
    maps::{config, scratch},
    packet::{ETH_LEN, IPV4_LEN, load, longest, store_rehash},
};

/// TTL of tunnel packets: what the kernel's vxlan device and Docker use.
const TTL: u8 = 64;

const ROOM_MAC: u32 = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
/// The containers' MTU leaves room for the tunnel headers, so segments keep their size.
const GSO: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;
/// The length of the inner Ethernet header goes into bits 56 to 63 (`BPF_F_ADJ_ROOM_ENCAP_L2`).
const PUSH: u64 = GSO
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | ((ETH_LEN as u64) << 56);

/// The four outer headers for an inner frame of `length` bytes, followed by its own header.
#[inline(always)]
pub fn headers(
    config: &Config,
    outer: Ethernet,
    node: Be32,
    tunnel: (u32, u32),
    inner: (Ethernet, u32),
) -> Encapsulation {
    let (vni, flow_hash) = tunnel;
    let (inner, length) = inner;
    let udp_length = length + (size_of::<Udp>() + size_of::<Vxlan>()) as u32;
    let mut ipv4 = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
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
            // Allowed over IPv4 and what every VXLAN sender does (RFC 7348, section 5).
            checksum: Be16::ZERO,
        },
        vxlan: Vxlan::new(vni),
        inner,
    }
}

/// A length for a header, or 0 where it does not fit: aggregates are given their lengths when they
/// are cut into segments.
#[inline(always)]
fn length16(length: u32) -> Be16 {
    if length > 0xffff { Be16::ZERO } else { Be16::new(length as u16) }
}

/// Sum over the fields that are set in [`headers`].
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

/// Encapsulates the packet, whose inner Ethernet header becomes `inner`, and sends it to `node`.
/// Returns the TC action.
///
/// # Errors
/// [`Reason::NoRoute`], [`Reason::TooBig`], [`Reason::TunnelRefused`].
#[inline(always)]
pub fn encapsulate(ctx: &TcContext, vni: u32, node: Be32, inner: &Ethernet) -> Result<i32, Reason> {
    fallible::unpack(encapsulate_packed(ctx.skb.skb, vni, node, inner)).map(|action| action as i32)
}

#[inline(never)]
fn encapsulate_packed(skb: *mut __sk_buff, vni: u32, node: Be32, inner: &Ethernet) -> i64 {
    let ctx = TcContext::new(skb);
    fallible::pack(push(&ctx, vni, node, inner).map(|action| action as u32))
}

#[inline(always)]
fn push(ctx: &TcContext, vni: u32, node: Be32, inner: &Ethernet) -> Result<i32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let length = ctx.len();
    let flow_hash = flow_hash(ctx);
    // The inner Ethernet header is inside now.
    let total = longest(ctx, ETH_LEN) + VXLAN_OVERHEAD;
    let hop = hop::to_node(ctx.skb.skb.cast(), config, node, total)?;
    ctx.adjust_room(VXLAN_OVERHEAD as i32, ROOM_MAC, PUSH).map_err(|_| Reason::TunnelRefused)?;
    let scratch = scratch()?;
    scratch.headers = headers(config, hop.ethernet, node, (vni, flow_hash), (*inner, length));
    store_rehash(ctx, 0, &scratch.headers)?;
    Ok(send(hop.ifindex, hop.resolved != 0))
}

/// A hash of the packet's flow: the kernel's, if the sending socket or the NIC has left one, or one of
/// our own, because the kernel's dissector takes longer than all else that happens to a packet here.
#[inline(always)]
fn flow_hash(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole run of the program.
    let known = unsafe { (*ctx.skb.skb).hash };
    if known != 0 {
        return known;
    }
    match load::<Ipv4>(ctx, ETH_LEN) {
        Ok(ip) if ip.version_ihl == 0x45 && !ip.is_fragment() => {
            let ports: [Be16; 2] = match ip.protocol {
                PROTO_TCP | PROTO_UDP => load(ctx, ETH_LEN + IPV4_LEN).unwrap_or_default(),
                _ => [Be16::ZERO; 2],
            };
            hash::of_flow(ip.saddr(), ip.daddr(), ports)
        }
        // SAFETY: as above.
        _ => unsafe { bpf_get_hash_recalc(ctx.skb.skb) },
    }
}

/// MTU in bytes that IPv4 packets inside the tunnel to `node` have, after [`encapsulate`] said
/// [`Reason::TooBig`].
///
/// # Errors
/// Those of [`path_mtu`].
#[inline(always)]
pub fn inner_mtu(ctx: &TcContext, node: Be32) -> Result<u32, Reason> {
    fallible::unpack(inner_mtu_packed(ctx.skb.skb, node))
}

#[inline(never)]
fn inner_mtu_packed(skb: *mut __sk_buff, node: Be32) -> i64 {
    let Some(config) = config() else { return fallible::pack(Err(Reason::NotConfigured)) };
    let path = path_mtu(skb.cast(), config, (config.vtep, node));
    fallible::pack(path.map(|mtu| mtu.saturating_sub(VXLAN_OVERHEAD)))
}

/// Removes the four outer headers. The Ethernet header that is then in front is the outer one: the
/// caller writes another.
///
/// # Errors
/// [`Reason::TunnelRefused`].
#[inline(always)]
pub fn decapsulate(ctx: &TcContext) -> Result<(), Reason> {
    ctx.adjust_room(-(VXLAN_OVERHEAD as i32), ROOM_MAC, GSO).map_err(|_| Reason::TunnelRefused)
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
        headers(&config(), outer, node, (4097, 0x1234_5678), (outer, length))
    }

    #[test]
    fn outer_lengths_count_what_follows_them() {
        let headers = some_headers(98);
        assert_eq!(headers.udp.length.get(), 98 + 16);
        assert_eq!(headers.ipv4.total_length.get(), 98 + 36);
        assert_eq!(headers.vxlan.vni(), Some(4097));
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
