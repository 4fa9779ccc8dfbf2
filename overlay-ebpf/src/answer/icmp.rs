//! ICMP errors that the programs send. A packet that does not fit its path is answered with
//! "fragmentation needed" (RFC 792, RFC 1191): its sender sends smaller packets and does not wait
//! in vain. A packet whose TTL ends is answered with "time exceeded", so that traceroute works.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode},
    helpers::{bpf_csum_diff, bpf_skb_change_tail},
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Mac, Reason, checksum,
    maps::Network,
    wire::{
        ETHERTYPE_IPV4, Ethernet, ICMP_FRAGMENTATION_NEEDED, ICMP_PORT_UNREACHABLE,
        ICMP_PROTOCOL_UNREACHABLE, ICMP_TIME_EXCEEDED, ICMP_UNREACHABLE, IPV4_DF, Icmp, IcmpError,
        Ipv4, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, is_icmp_error,
    },
};

use crate::{
    outcome,
    packet::frame::{ETH_LEN, load, load_at, pull, store},
};

/// Bytes of a packet that its answer quotes. RFC 1122, section 3.2.2, asks for the IP header, here
/// up to its longest, and 8 bytes. It is more, because the kernel cuts no packet before a checksum
/// that is still to be filled in. In a container's own tunnel that checksum is behind two sets of
/// headers.
const QUOTE: u32 = 128;
/// Bytes quoted of a short packet: header and ports.
const QUOTE_SHORT: u32 = 28;
/// Bytes quoted of short TCP, which include the checksum, for the same reason.
const QUOTE_TCP: u32 = 40;
/// Length of the headers in front of the quote, without Ethernet's.
const HEADERS: u32 = (size_of::<IcmpError>() - ETH_LEN) as u32;
/// Precedence "internetwork control", which RFC 1812, section 4.3.2.5, wants for ICMP errors.
const TOS: u8 = 0xc0;
const TTL: u8 = 64;

/// The sender of an answer.
pub struct Router {
    /// Its address.
    pub ip: Be32,
    /// Its MAC.
    pub mac: Mac,
}

impl Router {
    /// The gateway of a network.
    #[inline(always)]
    pub fn gateway(network: &Network) -> Self {
        Self { ip: network.gateway, mac: Mac::of_ip(network.gateway) }
    }
}

/// Turns an unchanged packet into the answer that the path takes IPv4 packets of `mtu` bytes only.
/// The caller sends it back out.
///
/// # Errors
/// [`Reason::TooBig`] for packets that must not be answered (RFC 1122, section 3.2.2): ICMP errors,
/// later fragments, packets without DF, and packets from an address other than one host's. The
/// packet may be cut already then.
#[inline(always)]
pub fn too_big(ctx: &TcContext, router: &Router, mtu: u32) -> Result<(), Reason> {
    outcome::unpack(too_big_packed(ctx.skb.skb, router, mtu)).map(|_| ())
}

#[inline(never)]
fn too_big_packed(skb: *mut __sk_buff, router: &Router, mtu: u32) -> i64 {
    let ctx = TcContext::new(skb);
    outcome::pack(answer(&ctx, router, mtu).map(|()| 0))
}

#[inline(always)]
fn answer(ctx: &TcContext, router: &Router, mtu: u32) -> Result<(), Reason> {
    let length = ETH_LEN as u32 + QUOTE;
    if ctx.len() < length {
        return Err(Reason::TooBig);
    }
    pull(ctx, length);
    let ethernet: Ethernet = load(ctx, 0)?;
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    if !may_be_answered(&ip) {
        return Err(Reason::TooBig);
    }
    if ip.protocol == PROTO_ICMP {
        let kind: u8 = load_at(ctx, ETH_LEN + usize::from(ip.version_ihl & 0xf) * 4)?;
        if is_icmp_error(kind) {
            return Err(Reason::TooBig);
        }
    }
    let error = Error { kind: [ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED], mtu };
    send::<QUOTE>(ctx, (&ethernet, &ip), router, &error)
}

/// Turns an unchanged packet into the answer that its time to live has ended. The caller sends it
/// back out. The packet is TCP, UDP or an echo request, with its transport header.
///
/// # Errors
/// [`Reason::TtlExceeded`] if the packet is too short for a quote behind its options.
/// [`Reason::RewriteRefused`] if the kernel refuses.
#[inline(always)]
pub fn time_exceeded(ctx: &TcContext, router: &Router) -> Result<(), Reason> {
    outcome::unpack(time_exceeded_packed(ctx.skb.skb, router)).map(|_| ())
}

#[inline(never)]
fn time_exceeded_packed(skb: *mut __sk_buff, router: &Router) -> i64 {
    let ctx = TcContext::new(skb);
    let error = Error { kind: [ICMP_TIME_EXCEEDED, 0], mtu: 0 };
    outcome::pack(quote_any(&ctx, router, &error, Reason::TtlExceeded).map(|()| 0))
}

/// Turns an unchanged packet into the answer that no program listens on its port. The caller sends
/// it back out. The packet is UDP or SCTP, with its transport header, from one host to one host
/// ([`is_from_one_host`]).
///
/// # Errors
/// [`Reason::NoBackend`] if the packet is too short for a quote behind its options.
/// [`Reason::RewriteRefused`] if the kernel refuses.
#[inline(always)]
pub fn port_unreachable(ctx: &TcContext) -> Result<(), Reason> {
    outcome::unpack(port_unreachable_packed(ctx.skb.skb)).map(|_| ())
}

#[inline(never)]
fn port_unreachable_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(answer_unreachable(&TcContext::new(skb)).map(|()| 0))
}

/// The answer comes from the frontend's address.
#[inline(always)]
fn answer_unreachable(ctx: &TcContext) -> Result<(), Reason> {
    let ethernet: Ethernet = load(ctx, 0)?;
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    // SCTP ignores "port unreachable" (RFC 9260, section 10, ICMP3 and ICMP8).
    let code =
        if ip.protocol == PROTO_SCTP { ICMP_PROTOCOL_UNREACHABLE } else { ICMP_PORT_UNREACHABLE };
    let error = Error { kind: [ICMP_UNREACHABLE, code], mtu: 0 };
    let frontend = Router { ip: ip.daddr(), mac: ethernet.dst };
    quote_any(ctx, &frontend, &error, Reason::NoBackend)
}

/// Makes an answer that quotes as much as there is, up to [`QUOTE`]. `short` is the error for a
/// packet that is too short behind its options.
#[inline(always)]
fn quote_any(ctx: &TcContext, router: &Router, error: &Error, short: Reason) -> Result<(), Reason> {
    let ethernet: Ethernet = load(ctx, 0)?;
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    let sent = (&ethernet, &ip);
    // The verifier must know the length of the sum.
    if ctx.len() >= ETH_LEN as u32 + QUOTE {
        send::<QUOTE>(ctx, sent, router, error)
    } else if ip.version_ihl != 0x45 {
        Err(short)
    } else if ip.protocol == PROTO_TCP {
        send::<QUOTE_TCP>(ctx, sent, router, error)
    } else {
        send::<QUOTE_SHORT>(ctx, sent, router, error)
    }
}

/// The content of an answer: type and code, and the MTU if it has one.
struct Error {
    kind: [u8; 2],
    mtu: u32,
}

/// Makes an answer that quotes `LENGTH` bytes; the packet has them.
#[inline(always)]
fn send<const LENGTH: u32>(
    ctx: &TcContext,
    (ethernet, ip): (&Ethernet, &Ipv4),
    router: &Router,
    error: &Error,
) -> Result<(), Reason> {
    let length = ETH_LEN as u32 + LENGTH;
    // SAFETY: the context is the program's own. This also turns an aggregate into one packet.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) } != 0 {
        return Err(Reason::RewriteRefused);
    }
    pull(ctx, length);
    let quote = quote_sum::<LENGTH>(ctx)?;
    ctx.adjust_room(HEADERS as i32, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0)
        .map_err(|_| Reason::RewriteRefused)?;
    store(ctx, 0, &headers(ethernet, ip, router, (error, LENGTH, quote)))
}

/// Whether the packet may be answered, by its IPv4 header.
#[inline(always)]
fn may_be_answered(ip: &Ipv4) -> bool {
    ip.fragment.get() & IPV4_DF != 0 && !ip.is_later_fragment() && is_from_one_host(ip)
}

/// Whether the source address belongs to a single host.
#[inline(always)]
pub fn is_from_one_host(ip: &Ipv4) -> bool {
    let [first, ..] = ip.src;
    first != 0 && first != 127 && first < 224
}

/// Sum of the quoted words.
#[inline(always)]
fn quote_sum<const LENGTH: u32>(ctx: &TcContext) -> Result<u64, Reason> {
    let start = ctx.data() + ETH_LEN;
    if start + LENGTH as usize > ctx.data_end() {
        return Err(Reason::Truncated);
    }
    // SAFETY: the bounds were checked.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start as *mut u32, LENGTH, 0) };
    // At most 32 bits, or an error.
    u32::try_from(sum).map(u64::from).map_err(|_| Reason::RewriteRefused)
}

/// The headers of an answer to a packet with these headers. `told` is the content, and the length
/// and sum of the quote.
#[inline(always)]
fn headers(ethernet: &Ethernet, ip: &Ipv4, router: &Router, told: (&Error, u32, u64)) -> IcmpError {
    let (Error { kind: [kind, code], mtu }, length, quote) = told;
    let mut ipv4 = Ipv4 {
        version_ihl: 0x45,
        tos: TOS,
        total_length: Be16::new((HEADERS + length) as u16),
        id: Be16::ZERO,
        fragment: Be16::new(IPV4_DF),
        ttl: TTL,
        protocol: PROTO_ICMP,
        checksum: Be16::ZERO,
        src: router.ip.octets(),
        dst: ip.src,
    };
    ipv4.checksum = ipv4.sum();
    let mut icmp = Icmp {
        kind: *kind,
        code: *code,
        mtu: Be16::new(if *mtu > 0xffff { 0xffff } else { *mtu as u16 }),
        ..Icmp::default()
    };
    let first = u16::from_ne_bytes([icmp.kind, icmp.code]);
    let sum = u64::from(first) + u64::from(icmp.mtu.raw()) + quote;
    icmp.checksum = Be16::from_raw(!checksum::fold(sum));
    let ethernet =
        Ethernet { dst: ethernet.src, src: router.mac, ethertype: Be16::new(ETHERTYPE_IPV4) };
    IcmpError { ethernet, ipv4, icmp }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::wire::IPV4_MF;

    fn ip() -> Ipv4 {
        Ipv4 {
            version_ihl: 0x45,
            fragment: Be16::new(IPV4_DF),
            src: [10, 0, 1, 2],
            dst: [10, 0, 1, 4],
            ..Ipv4::default()
        }
    }

    #[test]
    fn only_one_hosts_whole_packets_with_df_are_answered() {
        assert!(may_be_answered(&ip()));
        let first = Ipv4 { fragment: Be16::new(IPV4_DF | IPV4_MF), ..ip() };
        assert!(may_be_answered(&first), "a first fragment has the transport header");
        for fragment in [0, IPV4_MF, IPV4_DF | 185] {
            assert!(!may_be_answered(&Ipv4 { fragment: Be16::new(fragment), ..ip() }));
        }
        for src in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            assert!(!may_be_answered(&Ipv4 { src, ..ip() }), "{src:?}");
        }
    }

    #[test]
    fn the_quote_holds_the_longest_header_and_eight_bytes() {
        const { assert!(QUOTE >= 60 + 8) };
        const { assert!(QUOTE.is_multiple_of(4), "bpf_csum_diff takes whole words") };
        const { assert!(HEADERS + QUOTE <= 576, "RFC 1812, section 4.3.2.3") };
    }

    #[test]
    fn both_checksums_of_an_answer_verify_from_scratch() {
        let quote: Vec<u8> = (0..QUOTE).map(|i| (i * 31 + 7) as u8).collect();
        let sum = u64::from(!checksum::of_bytes(&quote, 0));
        let ip_of_gateway = Be32::from_octets([10, 0, 1, 1]);
        let router = Router { ip: ip_of_gateway, mac: Mac::of_ip(ip_of_gateway) };
        let error = Error { kind: [ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED], mtu: 1400 };
        let answer = headers(&Ethernet::default(), &ip(), &router, (&error, QUOTE, sum));
        assert_eq!((answer.ipv4.src, answer.ipv4.dst), ([10, 0, 1, 1], [10, 0, 1, 2]));
        assert_eq!(answer.icmp.mtu.get(), 1400);
        assert_eq!(Ipv4 { checksum: Be16::ZERO, ..answer.ipv4 }.sum(), answer.ipv4.checksum);
        let Icmp { kind, code, checksum, unused, mtu } = answer.icmp;
        let mut bytes = vec![kind, code];
        for word in [checksum, unused, mtu] {
            bytes.extend(word.raw().to_ne_bytes());
        }
        bytes.extend(quote);
        assert_eq!(checksum::of_bytes(&bytes, 0), 0);
    }
}
