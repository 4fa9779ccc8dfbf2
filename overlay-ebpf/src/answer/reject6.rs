//! Rejects TCP over IPv6 with a reset, as `answer::reject` does for IPv4.

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_change_tail, programs::TcContext};
use overlay_common::{
    Be16, Ip6, Reason, checksum,
    wire::{ETHERTYPE_IPV6, Ethernet, Ipv6, PROTO_TCP, PackedIpv6, Tcp, TcpSegment6},
};

use crate::{
    answer::reject::{TCP_LEN, header_sum, reset_header},
    maps::work::{PART_LATER, Work, scratch, work},
    outcome::{self},
    packet::{
        frame::{ETH_LEN, load, store_rehash},
        ipv6::{ICMPV6, IPV6_LEN},
    },
};

/// Length of a reset's frame.
const RESET_LEN: u32 = size_of::<TcpSegment6>() as u32;
const HOP_LIMIT: u8 = 64;

/// As `reject::reset`, for a packet with its header and flow in the work area.
///
/// # Errors
/// [`Reason::NoBackend`] for packets that must not be answered: as there, and TCP behind extension
/// headers.
#[inline(always)]
pub fn reset(ctx: &TcContext) -> Result<bool, Reason> {
    Ok(outcome::unpack(reset6_packed(ctx.skb.skb))? == ANSWERED)
}

/// The packet was TCP and has become its answer.
const ANSWERED: u32 = 1;

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn reset6_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(reset_if_tcp(&TcContext::new(skb)))
}

#[inline(always)]
fn reset_if_tcp(ctx: &TcContext) -> Result<u32, Reason> {
    let Work { flow, ipv6, .. } = work()?;
    let ip = &ipv6.ip;
    let ethernet: Ethernet = load(ctx, 0)?;
    if ethernet.dst.is_group() || !is_from_one_host(&ip.src) || flow.part == PART_LATER {
        return Err(Reason::NoBackend);
    }
    if flow.key.proto != PROTO_TCP {
        return Ok(0);
    }
    if usize::from(flow.transport) != ICMPV6 {
        return Err(Reason::NoBackend);
    }
    let tcp: Tcp = load(ctx, ETH_LEN + IPV6_LEN)?;
    let segment = &mut scratch()?.segment6;
    let length = u32::from(ip.payload_length.get());
    segment.tcp = reset_header(length, &tcp).ok_or(Reason::NoBackend)?;
    segment.ethernet =
        Ethernet { dst: ethernet.src, src: ethernet.dst, ethertype: Be16::new(ETHERTYPE_IPV6) };
    address(&mut segment.ipv6, ip);
    let pseudo = pseudo_sum(ip);
    segment.tcp.checksum = Be16::from_raw(pseudo);
    let refused = Reason::RewriteRefused;
    // SAFETY: the context is the program's own. This also turns an aggregate into one packet.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, RESET_LEN, 0) } != 0 {
        return Err(refused);
    }
    store_rehash(ctx, 0, segment)?;
    // As in `answer::reject`: the field holds the pseudo-header's sum, or becomes the whole
    // checksum.
    let difference = checksum::fold(2 * u64::from(pseudo) + header_sum(&segment.tcp));
    let field = ETH_LEN + IPV6_LEN + offset_of!(Tcp, checksum);
    ctx.skb.l4_csum_replace(field, 0, u64::from(difference), 0).map_err(|_| refused)?;
    Ok(ANSWERED)
}

/// Whether an address belongs to a single host: errors and resets go to no other addresses (RFC
/// 4443, section 2.4 e).
#[inline(always)]
fn is_from_one_host(ip: &Ip6) -> bool {
    !ip.is_group() && *ip != Ip6::UNSPECIFIED
}

#[inline(always)]
fn address(header: &mut PackedIpv6, ip: &Ipv6) {
    header.version_class_flow = [Be16::new(0x6000), Be16::ZERO];
    header.payload_length = Be16::new(TCP_LEN as u16);
    header.next_header = PROTO_TCP;
    header.hop_limit = HOP_LIMIT;
    header.src = ip.dst.halves();
    header.dst = ip.src.halves();
}

/// The pseudo-header's sum of a segment without data (RFC 8200, section 8.1), the same in both
/// directions.
#[inline(always)]
fn pseudo_sum(ip: &Ipv6) -> u16 {
    let rest: u64 = Be16::new(u16::from(PROTO_TCP)).raw().into();
    let length: u64 = Be16::new(TCP_LEN as u16).raw().into();
    checksum::fold(ip.src.sum() + ip.dst.sum() + length + rest)
}
