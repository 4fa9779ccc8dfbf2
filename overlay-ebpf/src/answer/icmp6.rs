//! ICMPv6 errors that the programs send. An IPv6 packet that does not fit the tunnel is answered
//! with "packet too big" (RFC 4443, section 3.2) from the gateway. Routers do not fragment IPv6, so
//! a sender depends on path MTU discovery (RFC 8201).

use core::mem::{offset_of, size_of};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode},
    helpers::{bpf_csum_diff, bpf_skb_change_tail},
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Ip6, Mac, Reason, checksum,
    maps::Network,
    wire::{
        ETHERTYPE_IPV6, Ethernet, ICMP6_ECHO_REQUEST, ICMP6_NEXT_HEADER, ICMP6_PARAMETER_PROBLEM,
        ICMP6_PORT_UNREACHABLE, ICMP6_TOO_BIG, ICMP6_UNREACHABLE, IPV6_MIN_MTU, Icmp6, Icmp6Error,
        Ipv6, PROTO_ICMPV6, PROTO_SCTP,
    },
};

use crate::{
    maps::{
        LINKS6, NETWORKS, lookup,
        work::{Ipv6Work, Work, work},
    },
    outcome,
    packet::{
        frame::{ETH_LEN, ifindex, load, load_at, pull, store},
        ipv6::{ICMPV6, IPV6_LEN},
    },
};

/// Bytes of a packet that its answer quotes: as many as fit the smallest MTU of IPv6 (RFC 4443,
/// section 2.4 c). The packet is longer than that MTU.
const QUOTE: u32 = IPV6_MIN_MTU - size_of::<Icmp6Error>() as u32;
/// Bytes that `bpf_csum_diff` sums at a time: before Linux 6.12 its buffer is a program's stack.
const SUMMED: usize = 512;
const HOP_LIMIT: u8 = 64;

/// Sets the gateway of the container behind `work.ipv6.link` as the sender of answers.
///
/// # Errors
/// [`Reason::TooBig`] if the container is gone.
#[inline(always)]
pub fn from_gateway(ctx: &TcContext) -> Result<(), Reason> {
    let work = &mut work()?.ipv6;
    work.router = lookup(&LINKS6, &ifindex(ctx)).ok_or(Reason::TooBig)?.gateway;
    let network: Network = lookup(&NETWORKS, &work.link.vni).ok_or(Reason::TooBig)?;
    work.router_mac = Mac::of_ip(network.gateway);
    Ok(())
}

/// Turns a packet into the answer that its path takes IPv6 packets of `mtu` bytes only. The packet
/// is unchanged, with its header in `work.ipv6.ip`; the answer comes from `work.ipv6.router`, and
/// the caller sends it back out. The MTU is at least 1280, which every path takes (RFC 8200,
/// section 5): shorter packets are sent in fragments of the tunnel (RFC 2473, section 7.1).
///
/// # Errors
/// [`Reason::TooBig`] for packets that must not be answered (RFC 4443, section 2.4 e): ICMPv6
/// errors.
#[inline(always)]
pub fn too_big(ctx: &TcContext, mtu: u32) -> Result<(), Reason> {
    outcome::unpack(too_big_packed(ctx.skb.skb, mtu)).map(|_| ())
}

#[inline(never)]
fn too_big_packed(skb: *mut __sk_buff, mtu: u32) -> i64 {
    outcome::pack(answer(&TcContext::new(skb), mtu).map(|()| 0))
}

#[inline(always)]
fn answer(ctx: &TcContext, mtu: u32) -> Result<(), Reason> {
    if work()?.ipv6.ip.next_header == PROTO_ICMPV6
        && load_at::<u8>(ctx, ICMPV6)? < ICMP6_ECHO_REQUEST
    {
        return Err(Reason::TooBig);
    }
    if ctx.len() < ETH_LEN as u32 + QUOTE {
        return Err(Reason::TooBig);
    }
    cut(ctx, QUOTE)?;
    let quote = quote_sum(ctx)?;
    let mtu = if mtu < IPV6_MIN_MTU { IPV6_MIN_MTU } else { mtu };
    send(ctx, QUOTE, [ICMP6_TOO_BIG, 0], mtu, quote)
}

/// Bytes of a rejected packet that its answer quotes.
const QUOTE_REJECTED: u32 = 128;
/// Bytes quoted of a short packet: its header, and the ports.
const QUOTE_SHORT: u32 = (IPV6_LEN + 8) as u32;

/// Turns a packet into the answer that no program listens on its port. The packet is unchanged,
/// with its header in `work.ipv6.ip`; the caller sends the answer back out. The packet is UDP or
/// SCTP, with its transport header, from one host to one host.
///
/// # Errors
/// [`Reason::Truncated`] if the packet is shorter; [`Reason::RewriteRefused`] if the kernel
/// refuses.
#[inline(always)]
pub fn port_unreachable(ctx: &TcContext) -> Result<(), Reason> {
    outcome::unpack(reject_port6_packed(ctx.skb.skb)).map(|_| ())
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn reject_port6_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(reject_port(&TcContext::new(skb)).map(|()| 0))
}

#[inline(always)]
fn reject_port(ctx: &TcContext) -> Result<(), Reason> {
    let Work { flow, ipv6, .. } = work()?;
    ipv6.router = ipv6.ip.dst;
    ipv6.router_mac = load::<Ethernet>(ctx, 0)?.dst;
    // SCTP ignores "port unreachable" (RFC 9260, section 10, ICMP3 and ICMP8).
    let (kind, value) = if flow.key.proto == PROTO_SCTP {
        ([ICMP6_PARAMETER_PROBLEM, ICMP6_NEXT_HEADER], offset_of!(Ipv6, next_header) as u32)
    } else {
        ([ICMP6_UNREACHABLE, ICMP6_PORT_UNREACHABLE], 0)
    };
    // The verifier must know the length of the sum.
    if ctx.len() >= ETH_LEN as u32 + QUOTE_REJECTED {
        cut(ctx, QUOTE_REJECTED)?;
        let quote = part_sum::<ETH_LEN, { QUOTE_REJECTED as usize }>(ctx, 0)?;
        send(ctx, QUOTE_REJECTED, kind, value, quote.into())
    } else {
        // The header of an aggregate may claim more bytes than there are.
        if ctx.len() < ETH_LEN as u32 + QUOTE_SHORT {
            return Err(Reason::Truncated);
        }
        cut(ctx, QUOTE_SHORT)?;
        let quote = part_sum::<ETH_LEN, { QUOTE_SHORT as usize }>(ctx, 0)?;
        send(ctx, QUOTE_SHORT, kind, value, quote.into())
    }
}

/// Cuts the packet to the bytes that its answer quotes, and makes them directly readable.
#[inline(always)]
fn cut(ctx: &TcContext, quote: u32) -> Result<(), Reason> {
    let length = ETH_LEN as u32 + quote;
    // SAFETY: the context is the program's own. This also turns an aggregate into one packet.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) } != 0 {
        return Err(Reason::RewriteRefused);
    }
    pull(ctx, length);
    Ok(())
}

/// Puts an answer's headers in front of the `length` bytes that it quotes, with the sum `quote`.
#[inline(always)]
fn send(ctx: &TcContext, length: u32, kind: [u8; 2], value: u32, quote: u64) -> Result<(), Reason> {
    let Ipv6Work { ip, error, router, router_mac, .. } = &mut work()?.ipv6;
    let ethernet: Ethernet = load(ctx, 0)?;
    ctx.adjust_room(size_of::<Icmp6Error>() as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0)
        .map_err(|_| Reason::RewriteRefused)?;
    fill(error, (router, &ip.src), (kind, value), (length, quote));
    store(ctx, ETH_LEN, error)?;
    let ethertype = Be16::new(ETHERTYPE_IPV6);
    store(ctx, 0, &Ethernet { dst: ethernet.src, src: *router_mac, ethertype })
}

/// Sum of the quoted words.
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

/// `sum` plus the sum of `LENGTH` bytes from `START`. The verifier must know both.
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

/// Fills in the headers of an answer from `ends.0` to `ends.1`: type and code, the value of its
/// second word, and length and sum of the bytes behind.
#[inline(always)]
fn fill(
    error: &mut Icmp6Error,
    ends: (&Ip6, &Ip6),
    ([kind, code], value): ([u8; 2], u32),
    (length, quote): (u32, u64),
) {
    let Icmp6Error { ipv6, icmp } = error;
    let payload = Be16::new((size_of::<Icmp6>() as u32 + length) as u16);
    ipv6.version_class_flow = [0x60, 0, 0, 0];
    ipv6.payload_length = payload;
    ipv6.next_header = PROTO_ICMPV6;
    ipv6.hop_limit = HOP_LIMIT;
    ipv6.src = *ends.0;
    ipv6.dst = *ends.1;
    icmp.kind = kind;
    icmp.code = code;
    icmp.checksum = Be16::ZERO;
    icmp.mtu = Be32::new(value);
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
        let ends = (&ip6("fd00::1"), &ip6("fd00::2"));
        fill(&mut error, ends, ([ICMP6_TOO_BIG, 0], 1400), (QUOTE, sum));
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
    fn an_answer_is_no_longer_than_what_every_path_takes() {
        let mut error = Icmp6Error::default();
        let told = ([ICMP6_TOO_BIG, 0], IPV6_MIN_MTU);
        fill(&mut error, (&Ip6::UNSPECIFIED, &Ip6::UNSPECIFIED), told, (QUOTE, 0));
        assert_eq!(u32::from(error.ipv6.payload_length.get()) + IPV6_LEN as u32, IPV6_MIN_MTU);
    }
}
