//! The tunnel (RFC 7348): pushing and popping 50 bytes.

use core::mem::offset_of;

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
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, Encapsulation, Ethernet, IPV4_DF, Ipv4, Ipv6, PROTO_TCP,
        PROTO_UDP, Udp, Vxlan,
    },
};

use crate::{
    forward::{path_mtu, route6, send},
    maps::{config, work::scratch},
    outcome::{self, Outcome, Stop, Verdict},
    packet::{
        ecn,
        frame::{ETH_LEN, is_gso, load, longest, store_rehash, vlan_tag_length},
        ipv4::IPV4_LEN,
    },
    tunnel::{fallback, next_hop, underlay, vxlan6},
};

/// Offset of the inner Ethernet header.
pub const INNER: usize = VXLAN_OVERHEAD as usize;

/// TTL of tunnel packets: what the kernel's vxlan device and Docker use.
pub const TTL: u8 = 64;

pub const ROOM_MAC: u32 = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
/// The containers' MTU leaves room for the tunnel headers, so segments keep their size.
pub const GSO: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;
/// The length of the inner Ethernet header goes into bits 56 to 63 (`BPF_F_ADJ_ROOM_ENCAP_L2`).
const PUSH: u64 = GSO
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | ((ETH_LEN as u64) << 56);

/// The four outer headers for an inner frame of `length` bytes, followed by its own header. `tunnel`
/// is the VNI, the flow's hash and the outer TOS byte.
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
pub fn length16(length: u32) -> Be16 {
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

/// How a packet was sent into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The action of TC.
    pub action: u32,
    /// Whether the kernel's vxlan device encapsulates it.
    pub by_kernel: bool,
}

impl Pushed {
    const BY_KERNEL: u32 = 1 << 31;

    /// As one number, for functions that are not inlined.
    #[inline(always)]
    const fn to_bits(self) -> u32 {
        if self.by_kernel { self.action | Self::BY_KERNEL } else { self.action }
    }

    /// The other way round.
    #[inline(always)]
    const fn from_bits(bits: u32) -> Self {
        Self { action: bits & !Self::BY_KERNEL, by_kernel: bits & Self::BY_KERNEL != 0 }
    }
}

/// Why the programs do not encapsulate a packet themselves.
pub enum Unpushed {
    /// It is dropped.
    Drop(Reason),
    /// It is one for the kernel's vxlan device; without one it is dropped for this reason.
    ToKernel(Reason),
}

impl From<Reason> for Unpushed {
    /// What is too long for the path as it is may be fragmented outside.
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        if reason == Reason::TooBig { Self::ToKernel(reason) } else { Self::Drop(reason) }
    }
}

/// What an encapsulating function returns: of a packet that was not pushed, what the kernel's device says.
#[inline(always)]
pub fn pushed_or_kernel(
    pushed: Result<i32, Unpushed>,
    skb: *mut __sk_buff,
    (vni, node): (u32, Be32),
    inner: &Ethernet,
) -> i64 {
    let (sent, by_kernel) = match pushed {
        Ok(action) => (Ok(action as u32), false),
        Err(Unpushed::Drop(reason)) => (Err(reason), false),
        Err(Unpushed::ToKernel(why)) => {
            (outcome::unpack(fallback::send_packed(skb, vni, node, inner, why as u32)), true)
        }
    };
    outcome::pack(sent.map(|action| Pushed { action, by_kernel }.to_bits()))
}

/// Encapsulates the packet, whose inner Ethernet header becomes `inner`, and sends it to `node`:
/// here, or where that cannot be by the kernel's vxlan device.
///
/// # Errors
/// [`Reason::NoRoute`], [`Reason::TunnelRefused`], [`Reason::TooBig`] for what must not be
/// fragmented.
#[inline(always)]
pub fn encapsulate(ctx: &TcContext, vni: u32, node: Be32, inner: &Ethernet) -> Outcome {
    let packed = if underlay::is_ipv6() {
        vxlan6::encapsulate_packed(ctx.skb.skb, vni, node, inner)
    } else {
        encapsulate_packed(ctx.skb.skb, vni, node, inner)
    };
    let Pushed { action, by_kernel } = Pushed::from_bits(outcome::unpack(packed)?);
    let reason = if by_kernel { Reason::HandedOver } else { Reason::Encapsulated };
    Ok(Verdict::Done(action as i32, reason))
}

#[inline(never)]
fn encapsulate_packed(skb: *mut __sk_buff, vni: u32, node: Be32, inner: &Ethernet) -> i64 {
    let ctx = TcContext::new(skb);
    pushed_or_kernel(push(&ctx, vni, node, inner), skb, (vni, node), inner)
}

#[inline(always)]
fn push(ctx: &TcContext, vni: u32, node: Be32, inner: &Ethernet) -> Result<i32, Unpushed> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let length = ctx.len();
    let flow_hash = flow_hash(ctx);
    // The inner Ethernet header is inside now.
    let tag = vlan_tag_length(ctx);
    let total = longest(ctx, ETH_LEN) + VXLAN_OVERHEAD + tag;
    let hop = next_hop::to_node(ctx.skb.skb.cast(), config, node, total)?;
    // A tag waits outside the packet data and would end up on the outer frame.
    if tag != 0 {
        return Err(Unpushed::ToKernel(Reason::TunnelRefused));
    }
    let tos = tos(ctx, inner)?;
    ctx.adjust_room(VXLAN_OVERHEAD as i32, ROOM_MAC, PUSH)
        .map_err(|_| Unpushed::ToKernel(Reason::TunnelRefused))?;
    let scratch = scratch()?;
    scratch.headers = headers(config, hop.ethernet, node, (vni, flow_hash, tos), (*inner, length));
    store_rehash(ctx, 0, &scratch.headers)?;
    Ok(send(hop.ifindex, hop.resolved != 0))
}

/// A hash of the packet's flow: the kernel's, if the sending socket or the NIC has left one, or one of
/// our own, because the kernel's dissector takes longer than all else that happens to a packet here.
#[inline(always)]
pub fn flow_hash(ctx: &TcContext) -> u32 {
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

/// TOS byte of the outer header.
#[inline(always)]
pub fn tos(ctx: &TcContext, inner: &Ethernet) -> Result<u8, Reason> {
    match inner.ethertype.get() {
        ETHERTYPE_IPV4 => load::<u8>(ctx, ETH_LEN + offset_of!(Ipv4, tos)).map(ecn::outer),
        ETHERTYPE_IPV6 => load::<Be16>(ctx, ETH_LEN).map(|word| ecn::outer(ecn::class(word))),
        _ => Ok(0),
    }
}

/// MTU in bytes that packets inside the tunnel to `node` have, after [`encapsulate`] said
/// [`Reason::TooBig`].
///
/// # Errors
/// Those of [`path_mtu`].
#[inline(always)]
pub fn inner_mtu(ctx: &TcContext, node: Be32) -> Result<u32, Reason> {
    outcome::unpack(inner_mtu_packed(ctx.skb.skb, node.raw()))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn inner_mtu_packed(skb: *mut __sk_buff, node: u32) -> i64 {
    let node = Be32::from_raw(node);
    let Some(config) = config() else { return outcome::pack(Err(Reason::NotConfigured)) };
    let path = if underlay::is_ipv6() {
        match underlay::vtep6(&node) {
            Some(vtep) => route6::path_mtu(skb.cast(), config, vtep),
            None => Err(Reason::NoRoute),
        }
    } else {
        path_mtu(skb.cast(), config, (config.vtep, node))
    };
    let overhead = underlay::overhead() + vlan_tag_length(&TcContext::new(skb));
    outcome::pack(path.map(|mtu| mtu.saturating_sub(overhead)))
}

/// Removes the four outer headers. The Ethernet header that is then in front is the outer one: the
/// caller writes another. `flags` are [`Config::decap_flags`].
///
/// # Errors
/// [`Stop::ToKernel`].
#[inline(always)]
pub fn remove(ctx: &TcContext, flags: u32) -> Result<(), Stop> {
    let flags = GSO | u64::from(flags);
    ctx.adjust_room(-(VXLAN_OVERHEAD as i32), ROOM_MAC, flags).map_err(|_| Stop::ToKernel)
}

/// As [`remove`], for an inner IPv6 packet. The kernel goes by the protocol it has noted for the
/// packet, not by the Ethernet header; shrinking changes it from Linux 6.3 on only. So the packet is
/// turned into an IPv6 packet first, which pushes the 20 bytes by which IPv6's header is longer, and
/// those go with the rest.
///
/// # Errors
/// [`Stop::ToKernel`] leaves the packet as it was. [`Reason::RewriteRefused`] does not: for
/// aggregates other than TCP's and UDP's, which the caller keeps from here.
#[inline(always)]
pub fn remove_ipv6(ctx: &TcContext, flags: u32) -> Result<(), Stop> {
    const LONGER: u32 = (size_of::<Ipv6>() - size_of::<Ipv4>()) as u32;
    ctx.change_proto(ETHERTYPE_IPV6.to_be(), 0).map_err(|_| Stop::ToKernel)?;
    let flags = GSO | u64::from(flags);
    ctx.adjust_room(-((VXLAN_OVERHEAD + LONGER) as i32), ROOM_MAC, flags)
        .map_err(|_| Stop::Drop(Reason::RewriteRefused))
}

/// Leaves to the kernel's device what cannot be taken apart here, while the packet is as it was: in
/// IPv4 the kernel refuses such aggregates itself, but of IPv6 it has changed the packet by then (Linux
/// 5.14). UDP's keep the mark of a tunnel where the kernel cannot be told, as in IPv4.
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

    #[test]
    fn how_a_packet_was_sent_survives_the_way_through_a_register() {
        for by_kernel in [false, true] {
            let pushed = Pushed { action: 7, by_kernel };
            assert_eq!(Pushed::from_bits(pushed.to_bits()), pushed);
        }
    }

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
