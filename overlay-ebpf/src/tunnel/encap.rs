//! Sends packets into the tunnel, by the programs or by the kernel's vxlan device.

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_get_hash_recalc, programs::TcContext};
use overlay_common::{
    Be16, Be32, Reason, hash,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, PROTO_TCP, PROTO_UDP},
};

use crate::{
    forward::route::{path_mtu, send},
    maps::config,
    outcome::{self, Outcome, Verdict},
    packet::{
        ecn,
        frame::{ETH_LEN, load, longest, vlan_tag_length},
        ipv4::IPV4_LEN,
    },
    tunnel::{
        fallback, next_hop, underlay,
        vxlan::{Outer, Outer4, ROOM_MAC},
        vxlan6::Outer6,
    },
};

/// The result of sending a packet into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pushed {
    /// The action of TC.
    action: u32,
    /// Whether the kernel's vxlan device encapsulates the packet.
    by_kernel: bool,
}

impl Pushed {
    const BY_KERNEL: u32 = 1 << 31;

    /// Packs it into one number, for functions that are not inlined.
    #[inline(always)]
    const fn to_bits(self) -> u32 {
        if self.by_kernel { self.action | Self::BY_KERNEL } else { self.action }
    }

    /// Unpacks the result of [`Pushed::to_bits`].
    #[inline(always)]
    const fn from_bits(bits: u32) -> Self {
        Self { action: bits & !Self::BY_KERNEL, by_kernel: bits & Self::BY_KERNEL != 0 }
    }
}

/// Why the programs do not encapsulate a packet themselves.
enum Unpushed {
    /// The packet is dropped.
    Drop(Reason),
    /// The packet goes to the kernel's vxlan device; without one it is dropped for this reason.
    ToKernel(Reason),
}

impl From<Reason> for Unpushed {
    /// The outer packet may be fragmented if the inner one is too long for the path.
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        if reason == Reason::TooBig { Self::ToKernel(reason) } else { Self::Drop(reason) }
    }
}

/// Encapsulates the packet, whose inner Ethernet header becomes `inner`, and sends it to `node`. If
/// the programs cannot, the kernel's vxlan device does it.
///
/// # Errors
/// [`Reason::NoRoute`], [`Reason::TunnelRefused`], [`Reason::TooBig`] for a packet that must not be
/// fragmented.
#[inline(always)]
pub fn encapsulate(ctx: &TcContext, vni: u32, node: Be32, inner: &Ethernet) -> Outcome {
    let packed = if underlay::is_ipv6() {
        encapsulate_packed::<Outer6>(ctx.skb.skb, vni, node, inner)
    } else {
        encapsulate_packed::<Outer4>(ctx.skb.skb, vni, node, inner)
    };
    let Pushed { action, by_kernel } = Pushed::from_bits(outcome::unpack(packed)?);
    let reason = if by_kernel { Reason::KernelEncap } else { Reason::Encapsulated };
    Ok(Verdict::done(action as i32, reason))
}

#[inline(never)]
fn encapsulate_packed<O: Outer>(
    skb: *mut __sk_buff,
    vni: u32,
    node: Be32,
    inner: &Ethernet,
) -> i64 {
    let (sent, by_kernel) = match push::<O>(&TcContext::new(skb), vni, node, inner) {
        Ok(action) => (Ok(action as u32), false),
        Err(Unpushed::Drop(reason)) => (Err(reason), false),
        Err(Unpushed::ToKernel(why)) => {
            (outcome::unpack(fallback::send_packed(skb, vni, node, inner, why as u32)), true)
        }
    };
    outcome::pack(sent.map(|action| Pushed { action, by_kernel }.to_bits()))
}

#[inline(always)]
fn push<O: Outer>(
    ctx: &TcContext,
    vni: u32,
    node: Be32,
    inner: &Ethernet,
) -> Result<i32, Unpushed> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let length = ctx.len();
    let flow_hash = flow_hash(ctx);
    // The overhead includes the inner Ethernet header.
    let tag = vlan_tag_length(ctx);
    let total = longest(ctx, ETH_LEN) + O::OVERHEAD + tag;
    let hop = next_hop::to_node(ctx.skb.skb.cast(), config, node, total)?;
    // A tag is outside the packet data and would end up on the outer frame.
    if tag != 0 {
        return Err(Unpushed::ToKernel(Reason::TunnelRefused));
    }
    let tos = tos(ctx, inner)?;
    ctx.adjust_room(O::OVERHEAD as i32, ROOM_MAC, O::PUSH)
        .map_err(|_| Unpushed::ToKernel(Reason::TunnelRefused))?;
    O::write(ctx, (config, hop), (vni, flow_hash, tos), (inner, length))?;
    Ok(send(hop.ifindex, hop.resolved != 0))
}

/// A hash of the packet's flow: the kernel's if the sending socket or the NIC has set one,
/// otherwise our own. The kernel's dissector takes longer than all other work on a packet here.
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

/// TOS byte of the outer header.
#[inline(always)]
fn tos(ctx: &TcContext, inner: &Ethernet) -> Result<u8, Reason> {
    match inner.ethertype.get() {
        ETHERTYPE_IPV4 => load::<u8>(ctx, ETH_LEN + offset_of!(Ipv4, tos)).map(ecn::outer),
        ETHERTYPE_IPV6 => load::<Be16>(ctx, ETH_LEN).map(|word| ecn::outer(ecn::class(word))),
        _ => Ok(0),
    }
}

/// MTU in bytes for packets inside the tunnel to `node`, after [`encapsulate`] returned
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
            Some(vtep) => path_mtu(skb.cast(), config, (&config.vtep6, vtep)),
            None => Err(Reason::NoRoute),
        }
    } else {
        path_mtu(skb.cast(), config, (config.vtep, node))
    };
    let overhead = underlay::overhead() + vlan_tag_length(&TcContext::new(skb));
    outcome::pack(path.map(|mtu| mtu.saturating_sub(overhead)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_packet_was_sent_survives_the_way_through_a_register() {
        for by_kernel in [false, true] {
            let pushed = Pushed { action: 7, by_kernel };
            assert_eq!(Pushed::from_bits(pushed.to_bits()), pushed);
        }
    }
}
