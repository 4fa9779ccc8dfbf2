//! IPv6 packets that do not fit the tunnel are answered with ICMPv6 "packet too big" (RFC 4443,
//! section 3.2) from the gateway: no router makes fragments of IPv6, so path MTU discovery (RFC 8201)
//! is all that a sender has.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode},
    helpers::{bpf_csum_diff, bpf_skb_change_tail},
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Ip6, Mac, Reason, checksum,
    maps::Network,
    wire::{
        ETHERTYPE_IPV6, Ethernet, ICMP6_ECHO_REQUEST, ICMP6_TOO_BIG, IPV6_MIN_MTU, Icmp6,
        Icmp6Error, PROTO_ICMPV6,
    },
};

use crate::{
    fallible,
    ipv6::{ICMPV6, IPV6_LEN},
    maps::{Ipv6Work, LINKS6, NETWORKS, lookup, work},
    packet::{ETH_LEN, ifindex, load, load_at, pull, store},
};

/// How much of a packet its answer quotes: as much as fits the least MTU of IPv6 (RFC 4443, section
/// 2.4 c). What is answered is longer than that MTU.
const QUOTE: u32 = IPV6_MIN_MTU - size_of::<Icmp6Error>() as u32;
/// What `bpf_csum_diff` sums at a time: before Linux 6.12 its room is the stack of a program.
const SUMMED: usize = 512;
const HOP_LIMIT: u8 = 64;

/// Tells the container behind `work.ipv6.link` that the path of its packet, which is as it was sent,
/// takes IPv6 packets of `mtu` bytes: makes the answer of it, which the caller sends back out. No less
/// than 1280 is told, which every path takes (RFC 8200, section 5): packets up to that length are sent
/// in fragments of the tunnel (RFC 2473, section 7.1).
///
/// # Errors
/// [`Reason::TooBig`] for what nobody may be told of (RFC 4443, section 2.4 e): ICMPv6 errors.
#[inline(always)]
pub fn too_big(ctx: &TcContext, mtu: u32) -> Result<(), Reason> {
    fallible::unpack(too_big_packed(ctx.skb.skb, mtu)).map(|_| ())
}

#[inline(never)]
fn too_big_packed(skb: *mut __sk_buff, mtu: u32) -> i64 {
    fallible::pack(answer(&TcContext::new(skb), mtu).map(|()| 0))
}

#[inline(always)]
fn answer(ctx: &TcContext, mtu: u32) -> Result<(), Reason> {
    let Ipv6Work { link, ip, error, .. } = &mut work()?.ipv6;
    if ip.next_header == PROTO_ICMPV6 && load_at::<u8>(ctx, ICMPV6)? < ICMP6_ECHO_REQUEST {
        return Err(Reason::TooBig);
    }
    let gateway = lookup(&LINKS6, &ifindex(ctx)).ok_or(Reason::TooBig)?.gateway;
    let network: Network = lookup(&NETWORKS, &link.vni).ok_or(Reason::TooBig)?;
    let length = ETH_LEN as u32 + QUOTE;
    if ctx.len() < length {
        return Err(Reason::TooBig);
    }
    // SAFETY: the context is the program's own. This also makes one packet of an aggregate.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) } != 0 {
        return Err(Reason::RewriteRefused);
    }
    pull(ctx, length);
    let ethernet: Ethernet = load(ctx, 0)?;
    let quote = quote_sum(ctx)?;
    ctx.adjust_room(size_of::<Icmp6Error>() as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0)
        .map_err(|_| Reason::RewriteRefused)?;
    fill(error, (&gateway, &ip.src), mtu, quote);
    store(ctx, ETH_LEN, error)?;
    let ethertype = Be16::new(ETHERTYPE_IPV6);
    store(ctx, 0, &Ethernet { dst: ethernet.src, src: Mac::of_ip(network.gateway), ethertype })
}

/// Sum of the words that are quoted.
#[inline(always)]
fn quote_sum(ctx: &TcContext) -> Result<u64, Reason> {
    const FIRST: usize = ETH_LEN;
    const SECOND: usize = FIRST + SUMMED;
    const THIRD: usize = SECOND + SUMMED;
    const REST: usize = QUOTE as usize - 2 * SUMMED;
    let sum = part_sum::<FIRST, SUMMED>(ctx, 0)?;
    let sum = part_sum::<SECOND, SUMMED>(ctx, sum)?;
    part_sum::<THIRD, REST>(ctx, sum).map(u64::from)
}

/// `sum` and that of the `LENGTH` bytes from `START`. The verifier must know both.
#[inline(always)]
fn part_sum<const START: usize, const LENGTH: usize>(
    ctx: &TcContext,
    sum: u32,
) -> Result<u32, Reason> {
    const { assert!(LENGTH <= SUMMED && LENGTH.is_multiple_of(4)) };
    let start = ctx.data() + START;
    if start + LENGTH > ctx.data_end() {
        return Err(Reason::Truncated);
    }
    // SAFETY: the bounds were checked.
    let sum =
        unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start as *mut u32, LENGTH as u32, sum) };
    // At most 32 bits, or an error.
    u32::try_from(sum).map_err(|_| Reason::RewriteRefused)
}

/// Fills in the headers of an answer from `ends.0` to `ends.1`. `quote` is the sum of what follows them.
#[inline(always)]
fn fill(error: &mut Icmp6Error, ends: (&Ip6, &Ip6), mtu: u32, quote: u64) {
    let Icmp6Error { ipv6, icmp } = error;
    let payload = Be16::new((size_of::<Icmp6>() as u32 + QUOTE) as u16);
    ipv6.version_class_flow = [0x60, 0, 0, 0];
    ipv6.payload_length = payload;
    ipv6.next_header = PROTO_ICMPV6;
    ipv6.hop_limit = HOP_LIMIT;
    ipv6.src = *ends.0;
    ipv6.dst = *ends.1;
    icmp.kind = ICMP6_TOO_BIG;
    icmp.code = 0;
    icmp.checksum = Be16::ZERO;
    icmp.mtu = Be32::new(if mtu < IPV6_MIN_MTU { IPV6_MIN_MTU } else { mtu });
    let sum = ipv6.src.sum()
        + ipv6.dst.sum()
        + u64::from(payload.raw())
        + u64::from(u16::from_ne_bytes([0, PROTO_ICMPV6]))
        + u64::from(u16::from_ne_bytes([icmp.kind, icmp.code]))
        + u64::from(icmp.mtu.raw())
        + quote;
    icmp.checksum = Be16::from_raw(!checksum::fold(sum));
}

const _: () = assert!(IPV6_LEN + size_of::<Icmp6>() == size_of::<Icmp6Error>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_an_answer_verifies_from_scratch() {
        let quote: Vec<u8> = (0..QUOTE).map(|i| (i * 31 + 7) as u8).collect();
        let sum = u64::from(!checksum::of_bytes(&quote, 0));
        let ip6 = |text: &str| Ip6::from(text.parse::<core::net::Ipv6Addr>().expect("an address"));
        let mut error = Icmp6Error::default();
        fill(&mut error, (&ip6("fd00::1"), &ip6("fd00::2")), 1400, sum);
        let Icmp6 { kind, code, checksum: told, mtu } = error.icmp;
        assert_eq!((kind, code, mtu.get()), (2, 0, 1400));
        let mut bytes = Vec::new();
        for ip in [error.ipv6.src, error.ipv6.dst] {
            bytes.extend(core::net::Ipv6Addr::from(ip).octets());
        }
        bytes.extend([0, 0, 4, 0xd8, 0, 0, 0, 58, kind, code]);
        bytes.extend(told.raw().to_ne_bytes());
        bytes.extend(mtu.octets());
        bytes.extend(quote);
        assert_eq!(checksum::of_bytes(&bytes, 0), 0);
    }

    #[test]
    fn no_less_than_every_path_takes_is_told() {
        let mut error = Icmp6Error::default();
        fill(&mut error, (&Ip6::UNSPECIFIED, &Ip6::UNSPECIFIED), 1000, 0);
        assert_eq!(error.icmp.mtu.get(), 1280);
        assert_eq!(u32::from(error.ipv6.payload_length.get()) + IPV6_LEN as u32, IPV6_MIN_MTU);
    }
}
