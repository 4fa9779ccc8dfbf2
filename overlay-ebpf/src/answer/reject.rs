//! Rejects TCP with a reset (RFC 9293, section 3.10.7.1), as a host does for a port without a
//! program. Without an answer the client would wait until its own timeout.

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_change_tail, programs::TcContext};
use overlay_common::{
    Be16, Reason, checksum,
    wire::{
        ETHERTYPE_IPV4, Ethernet, IPV4_DF, Ipv4, PROTO_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
        Tcp, TcpSegment,
    },
};

use crate::{
    answer::icmp,
    maps::work::scratch,
    outcome::{self},
    packet::{
        frame::{ETH_LEN, load, store_rehash},
        ipv4::IPV4_LEN,
    },
};

/// Length of a reset's frame.
const RESET_LEN: u32 = size_of::<TcpSegment>() as u32;
/// Length of a TCP header without options.
pub const TCP_LEN: u32 = size_of::<Tcp>() as u32;
const TTL: u8 = 64;

/// Turns an unchanged TCP packet into the reset that answers it, from the frontend's address.
/// Returns `false` for other protocols.
///
/// # Errors
/// [`Reason::NoBackend`] for packets that must not be answered: resets, TCP behind IPv4 options,
/// later fragments, and packets to or from an address other than one host's (RFC 1122, section
/// 3.2.2).
#[inline(always)]
pub fn reset(ctx: &TcContext) -> Result<bool, Reason> {
    Ok(outcome::unpack(reset_packed(ctx.skb.skb))? == ANSWERED)
}

/// The packet was TCP and has become its answer.
const ANSWERED: u32 = 1;

#[inline(never)]
fn reset_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(reset_if_tcp(&TcContext::new(skb)))
}

#[inline(always)]
fn reset_if_tcp(ctx: &TcContext) -> Result<u32, Reason> {
    let ethernet: Ethernet = load(ctx, 0)?;
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    let is_one = icmp::is_from_one_host(&ip) && !ip.is_later_fragment();
    if ethernet.dst.is_group() || !is_one {
        return Err(Reason::NoBackend);
    }
    if ip.protocol != PROTO_TCP {
        return Ok(0);
    }
    if ip.version_ihl != 0x45 {
        return Err(Reason::NoBackend);
    }
    let tcp: Tcp = load(ctx, ETH_LEN + IPV4_LEN)?;
    let segment = &mut scratch()?.segment;
    *segment = reset_segment(&ethernet, &ip, &tcp).ok_or(Reason::NoBackend)?;
    let refused = Reason::RewriteRefused;
    // SAFETY: the context is the program's own. This also turns an aggregate into one packet.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, RESET_LEN, 0) } != 0 {
        return Err(refused);
    }
    let pseudo = pseudo_sum(&segment.ipv4);
    store_rehash(ctx, 0, segment)?;
    // A container's packet mostly has no checksum yet: the field holds the pseudo-header's sum, and
    // the last sender adds the rest. The kernel's helper then leaves the field as it is. Otherwise
    // it turns the field into the whole checksum by this difference.
    let difference = checksum::fold(2 * u64::from(pseudo) + header_sum(&segment.tcp));
    let field = ETH_LEN + IPV4_LEN + offset_of!(Tcp, checksum);
    ctx.skb.l4_csum_replace(field, 0, u64::from(difference), 0).map_err(|_| refused)?;
    Ok(ANSWERED)
}

/// The reset that answers a segment (RFC 9293, section 3.10.7.1), with the pseudo-header's sum in
/// place of the checksum. `None` for segments that must not be answered: a reset, or an impossible
/// header.
#[inline(always)]
fn reset_segment(ethernet: &Ethernet, ip: &Ipv4, tcp: &Tcp) -> Option<TcpSegment> {
    let available = u32::from(ip.total_length.get()).saturating_sub(IPV4_LEN as u32);
    let tcp = reset_header(available, tcp)?;
    let mut ipv4 = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: Be16::new((IPV4_LEN as u32 + TCP_LEN) as u16),
        id: Be16::ZERO,
        fragment: Be16::new(IPV4_DF),
        ttl: TTL,
        protocol: PROTO_TCP,
        checksum: Be16::ZERO,
        src: ip.dst,
        dst: ip.src,
    };
    ipv4.checksum = ipv4.sum();
    Some(TcpSegment {
        ethernet: Ethernet {
            dst: ethernet.src,
            src: ethernet.dst,
            ethertype: Be16::new(ETHERTYPE_IPV4),
        },
        ipv4,
        tcp: Tcp { checksum: Be16::from_raw(pseudo_sum(&ipv4)), ..tcp },
    })
}

/// The header of the reset that answers a segment of `length` bytes, without its checksum; `None`
/// as for [`reset_segment`].
#[inline(always)]
pub fn reset_header(length: u32, tcp: &Tcp) -> Option<Tcp> {
    if tcp.flags & TCP_RST != 0 {
        return None;
    }
    let (sequence, acknowledgement, flags) = if tcp.flags & TCP_ACK != 0 {
        (tcp.acknowledgement, [0; 4], TCP_RST)
    } else {
        let header = u32::from(tcp.data_offset >> 4) * 4;
        if header < TCP_LEN || header > length {
            return None;
        }
        let mut data = length - header;
        data += u32::from(tcp.flags & TCP_SYN != 0) + u32::from(tcp.flags & TCP_FIN != 0);
        let next = u32::from_be_bytes(tcp.sequence).wrapping_add(data);
        ([0; 4], next.to_be_bytes(), TCP_RST | TCP_ACK)
    };
    Some(Tcp {
        source: tcp.dest,
        dest: tcp.source,
        sequence,
        acknowledgement,
        data_offset: 5 << 4,
        flags,
        window: Be16::ZERO,
        checksum: Be16::ZERO,
        urgent: Be16::ZERO,
    })
}

/// The pseudo-header's sum of a segment without data (RFC 9293, section 3.1).
#[inline(always)]
fn pseudo_sum(ip: &Ipv4) -> u16 {
    let addresses = u64::from(ip.saddr().raw()) + u64::from(ip.daddr().raw());
    let rest = u64::from(Be16::new(u16::from(PROTO_TCP)).raw()) + u64::from(Be16::new(20).raw());
    checksum::fold(addresses + rest)
}

/// The sum of the header's words without its checksum.
#[inline(always)]
pub fn header_sum(tcp: &Tcp) -> u64 {
    u64::from(tcp.source.raw())
        + u64::from(tcp.dest.raw())
        + u64::from(u32::from_ne_bytes(tcp.sequence))
        + u64::from(u32::from_ne_bytes(tcp.acknowledgement))
        + u64::from(u16::from_ne_bytes([tcp.data_offset, tcp.flags]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(total: u16) -> Ipv4 {
        Ipv4 {
            version_ihl: 0x45,
            total_length: Be16::new(total),
            src: [10, 0, 1, 2],
            dst: [10, 0, 1, 9],
            ..Ipv4::default()
        }
    }

    fn segment(flags: u8) -> Tcp {
        Tcp {
            source: Be16::new(40_000),
            dest: Be16::new(80),
            sequence: 0xffff_fffe_u32.to_be_bytes(),
            acknowledgement: 77_u32.to_be_bytes(),
            data_offset: 6 << 4,
            flags,
            ..Tcp::default()
        }
    }

    fn answered(total: u16, flags: u8) -> Option<(u32, u32, u8)> {
        let tcp = reset_segment(&Ethernet::default(), &ip(total), &segment(flags))?.tcp;
        let [sequence, acknowledgement] =
            [tcp.sequence, tcp.acknowledgement].map(u32::from_be_bytes);
        Some((sequence, acknowledgement, tcp.flags))
    }

    #[test]
    fn a_reset_is_one_that_the_sender_believes() {
        // With a header of 24 bytes: SYN alone, SYN with three bytes of data, SYN and FIN.
        assert_eq!(answered(44, TCP_SYN), Some((0, 0xffff_ffff, TCP_RST | TCP_ACK)));
        assert_eq!(answered(47, TCP_SYN), Some((0, 2, TCP_RST | TCP_ACK)));
        assert_eq!(answered(44, TCP_SYN | TCP_FIN), Some((0, 0, TCP_RST | TCP_ACK)));
        assert_eq!(answered(44, TCP_ACK), Some((77, 0, TCP_RST)));
    }

    #[test]
    fn resets_and_impossible_headers_get_no_answer() {
        assert_eq!(answered(44, TCP_RST), None);
        assert_eq!(answered(44, TCP_RST | TCP_ACK), None);
        assert_eq!(answered(43, TCP_SYN), None, "the header is longer than the packet");
        let short = Tcp { data_offset: 4 << 4, ..segment(TCP_SYN) };
        assert_eq!(reset_segment(&Ethernet::default(), &ip(44), &short), None);
    }

    #[test]
    fn the_checksum_comes_out_right_where_the_helper_applies_the_difference() {
        let TcpSegment { ipv4, tcp, .. } =
            reset_segment(&Ethernet::default(), &ip(44), &segment(TCP_SYN)).expect("a reset");
        let pseudo = pseudo_sum(&ipv4);
        assert_eq!(tcp.checksum.raw(), pseudo);
        let difference = checksum::fold(2 * u64::from(pseudo) + header_sum(&tcp));
        // As csum_replace_by_diff does (include/net/checksum.h).
        let whole = !checksum::fold(u64::from(difference) + u64::from(!pseudo));
        assert_eq!(checksum::fold(u64::from(pseudo) + header_sum(&tcp) + u64::from(whole)), 0xffff);
    }
}
