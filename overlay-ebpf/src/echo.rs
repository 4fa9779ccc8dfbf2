//! Addresses that nobody has behind them, gateways and VIPs, answer ping where they are asked.

use core::mem::offset_of;

use aya_ebpf::programs::TcContext;
use network_types::icmp::Icmpv4Hdr;
use overlay_common::{
    Be16, Reason,
    wire::{Ethernet, Ipv4},
};

use crate::{
    Outcome,
    forward::back_out,
    packet::{ETH_LEN, IPV4_LEN, load_at, store},
};

/// ICMP type and code of an echo request, as one half word (RFC 792).
const ECHO_REQUEST: u16 = 0x0800;
/// ICMP type and code of an echo reply.
const ECHO_REPLY: u16 = 0x0000;
/// Offset of the checksum in an ICMP header.
const ICMP_CHECKSUM: usize = offset_of!(Icmpv4Hdr, check);

/// Answers an echo request to an address of ours. Swapping the addresses changes no checksum but
/// that of the ICMP header, by the difference of the types.
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
