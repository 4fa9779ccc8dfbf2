//! Answers ping to gateways and VIPs, which have no host of their own.

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use network_types::icmp::Icmpv4Hdr;
use overlay_common::{
    Be16, Reason,
    wire::{Ethernet, Ipv4, Ipv6},
};

use crate::{
    forward::deliver::back_out,
    maps::work::{Ipv6Work, work},
    outcome::{self, Outcome},
    packet::{
        frame::{ETH_LEN, load_at, store},
        ipv4::{ECHO_REPLY, ECHO_REQUEST, IPV4_LEN},
        ipv6::ICMPV6,
    },
};

/// ICMPv6 type and code of an echo request, as one half word (RFC 4443, section 4.1).
const ECHO_REQUEST6: u16 = 0x8000;
/// ICMPv6 type and code of an echo reply.
const ECHO_REPLY6: u16 = 0x8100;
/// Offset of the checksum in an ICMP header, the same in ICMPv6.
const ICMP_CHECKSUM: usize = offset_of!(Icmpv4Hdr, check);

/// Answers an echo request to such an address. Swapping the addresses changes no checksum but that
/// of the ICMP header, by the difference of the types.
#[inline(always)]
pub fn answer(ctx: &TcContext, ethernet: &Ethernet, ip: &Ipv4) -> Outcome {
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let icmp = ETH_LEN + usize::from(ip.version_ihl & 0xf) * 4;
    let kind: Be16 = load_at(ctx, icmp)?;
    if kind.get() != ECHO_REQUEST {
        return Err(Reason::GatewayPort);
    }
    ctx.skb
        .l4_csum_replace(
            icmp + ICMP_CHECKSUM,
            u64::from(kind.raw()),
            u64::from(Be16::new(ECHO_REPLY).raw()),
            2,
        )
        .map_err(|_| Reason::Truncated)?;
    store(ctx, icmp, &Be16::new(ECHO_REPLY))?;
    let addresses: [[u8; 4]; 2] = [ip.dst, ip.src];
    store(ctx, ETH_LEN + IPV4_LEN - 8, &flatten(addresses))?;
    store(ctx, 0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..*ethernet })?;
    Ok(back_out(ctx, Reason::EchoAnswered))
}

#[inline(always)]
fn flatten(addresses: [[u8; 4]; 2]) -> [u8; 8] {
    let [[a, b, c, d], [e, f, g, h]] = addresses;
    [a, b, c, d, e, f, g, h]
}

/// As [`answer`], for ICMPv6. Its checksum covers the pseudo-header, whose sum is the same with
/// swapped addresses.
#[inline(always)]
pub fn answer6(ctx: &TcContext) -> Outcome {
    outcome::unpack(answer6_packed(ctx.skb.skb))?;
    Ok(back_out(ctx, Reason::EchoAnswered))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn answer6_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(rewrite6(&TcContext::new(skb)).map(|()| 0))
}

#[inline(always)]
fn rewrite6(ctx: &TcContext) -> Result<(), Reason> {
    let kind: Be16 = load_at(ctx, ICMPV6)?;
    if kind.get() != ECHO_REQUEST6 {
        return Err(Reason::GatewayPort);
    }
    let new = Be16::new(ECHO_REPLY6);
    ctx.skb
        .l4_csum_replace(ICMPV6 + ICMP_CHECKSUM, kind.raw().into(), new.raw().into(), 2)
        .map_err(|_| Reason::Truncated)?;
    store(ctx, ICMPV6, &new)?;
    // The checks have left the headers in the work area.
    let Ipv6Work { ip: Ipv6 { src, dst, .. }, ethernet, .. } = &work()?.ipv6;
    store(ctx, ETH_LEN + offset_of!(Ipv6, src), dst)?;
    store(ctx, ETH_LEN + offset_of!(Ipv6, dst), src)?;
    store(ctx, 0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..*ethernet })
}
