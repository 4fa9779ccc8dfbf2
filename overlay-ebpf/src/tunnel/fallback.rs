//! Kernel fallback: the kernel's own vxlan device on the tunnel's port handles the packets that the
//! programs cannot. These are packets that must be fragmented outside, packets with VLAN tags, and
//! packets that `bpf_skb_adjust_room` refuses: those that are encapsulated already, and aggregates
//! other than TCP's and UDP's.
//!
//! The device also receives outer fragments and outer IP options. Its frames come to `from_vxlan`,
//! with the same checks as in `from_underlay`.

use core::mem::{offset_of, size_of};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_DONT_FRAGMENT, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_OK,
        bpf_tunnel_key as TunnelKey,
    },
    helpers::{bpf_redirect, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Ip6, Reason,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_DF, IPV6_MIN_MTU, Ipv4, Udp, Vxlan},
};

use crate::{
    maps::{config, work::scratch},
    outcome::{self, Outcome, Verdict},
    packet::{
        frame::{ETH_LEN, load, load_at, longest, store},
        ipv4::IPV4_LEN,
        ipv6::IPV6_LEN,
    },
    tunnel::{underlay, vxlan::TTL},
};

/// Passes a frame, whose Ethernet header becomes `inner`, to the device, which sends it to `node`.
/// `why` is the reason for the fallback. With [`Reason::TooBig`] the outer packet is fragmented.
///
/// # Errors
/// `why` without a device, and for a packet that must not be fragmented; the kernel's refusal.
#[inline(never)]
pub fn send_packed(skb: *mut __sk_buff, vni: u32, node: Be32, inner: &Ethernet, why: u32) -> i64 {
    let ctx = TcContext::new(skb);
    let why = Reason::from_index(why).unwrap_or(Reason::TunnelRefused);
    outcome::pack(send(&ctx, (vni, node), inner, why))
}

#[inline(always)]
fn send(
    ctx: &TcContext,
    (vni, node): (u32, Be32),
    inner: &Ethernet,
    why: Reason,
) -> Result<u32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    if config.vxlan_ifindex == 0 {
        return Err(why);
    }
    let mut flags = u64::from(BPF_F_ZERO_CSUM_TX);
    if why != Reason::TooBig {
        flags |= u64::from(BPF_F_DONT_FRAGMENT);
    } else if !may_be_fragmented(ctx, inner)? {
        return Err(why);
    }
    if !address(ctx.skb.skb, vni, (config.vtep, node), flags) {
        return Err(Reason::TunnelRefused);
    }
    store(ctx, 0, inner)?;
    // SAFETY: a helper without preconditions.
    Ok(unsafe { bpf_redirect(config.vxlan_ifindex, 0) } as u32)
}

/// Sets the network and the VTEPs of a packet for the device. `flags` are those of
/// `bpf_skb_set_tunnel_key`. Returns whether the kernel accepted them.
#[inline(always)]
pub fn address(skb: *mut __sk_buff, vni: u32, (vtep, node): (Be32, Be32), flags: u64) -> bool {
    let (Ok(key), Some(config)) = (empty_key(), config()) else { return false };
    key.tunnel_id = vni;
    let mut flags = flags;
    if underlay::is_ipv6() {
        let Some(to) = underlay::vtep6(&node) else { return false };
        flags |= u64::from(BPF_F_TUNINFO_IPV6);
        // The helper takes IPv6 addresses in wire order.
        key.__bindgen_anon_1.remote_ipv6 = to.words();
        key.__bindgen_anon_3.local_ipv6 = config.vtep6.words();
    } else {
        // The helper takes IPv4 addresses in host order.
        key.__bindgen_anon_1.remote_ipv4 = node.get();
        key.__bindgen_anon_3.local_ipv4 = vtep.get();
    }
    key.tunnel_ttl = TTL;
    let size = size_of::<TunnelKey>() as u32;
    // SAFETY: the context is the program's own, and the key has this size.
    unsafe { bpf_skb_set_tunnel_key(skb, key, size, flags) == 0 }
}

/// A tunnel key in the scratch area. On the stack it is larger than the room that older kernels
/// (6.1) have left in the longest chain of calls.
#[inline(always)]
fn empty_key() -> Result<&'static mut TunnelKey, Reason> {
    let scratch = scratch()?;
    const { assert!(size_of::<TunnelKey>() <= size_of::<[u64; 8]>()) };
    for word in &mut scratch.fib {
        // One by one: for the whole array the compiler would call a function.
        // SAFETY: a word of the scratch area.
        unsafe { (&raw mut *word).write_volatile(0) };
    }
    // SAFETY: the area has room for the key and is aligned to 8 bytes, and zero is a valid value of
    // this plain C struct.
    Ok(unsafe { &mut *(&raw mut scratch.fib).cast() })
}

/// Whether the tunnel may fragment the packet: IPv4 without DF, and IPv6 up to the length that
/// every link must carry (RFC 8200, section 5; RFC 2473, section 7.1).
#[inline(always)]
fn may_be_fragmented(ctx: &TcContext, inner: &Ethernet) -> Result<bool, Reason> {
    // The kernel's tunnels do not fragment over IPv6 (`ip6_fragment` without `ignore_df`).
    if underlay::is_ipv6() {
        return Ok(false);
    }
    match inner.ethertype.get() {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_IPV6 => return Ok(longest(ctx, ETH_LEN) <= IPV6_MIN_MTU),
        _ => return Ok(false),
    }
    let fragment: Be16 = load(ctx, ETH_LEN + offset_of!(Ipv4, fragment))?;
    Ok(fragment.get() & IPV4_DF == 0)
}

/// Passes a tunnel packet with its outer headers to the device. Clears reserved bits, because the
/// device would drop the packet; RFC 7348, section 5, says to ignore them.
#[inline(always)]
pub fn leave(ctx: &TcContext) -> Outcome {
    let ip = if underlay::is_ipv6() { IPV6_LEN } else { IPV4_LEN };
    let at = ETH_LEN + ip + size_of::<Udp>();
    let vxlan: Vxlan = load_at(ctx, at)?;
    let vni = vxlan.vni().ok_or(Reason::InvalidVni)?;
    store(ctx, at, &Vxlan::new(vni))?;
    Ok(Verdict::done(TC_ACT_OK, Reason::KernelDecap))
}

/// The VNI and the outer source of a frame from the device.
///
/// # Errors
/// [`Reason::InvalidVni`] if it did not come from a tunnel of the underlay's family;
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn origin(ctx: &TcContext) -> Result<(u32, Be32), Reason> {
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut key: TunnelKey = unsafe { core::mem::zeroed() };
    // SAFETY: the context is the program's own, and the key is on the stack.
    let got = unsafe {
        let size = size_of::<TunnelKey>() as u32;
        let flags = if underlay::is_ipv6() { BPF_F_TUNINFO_IPV6 } else { 0 };
        bpf_skb_get_tunnel_key(ctx.skb.skb, &raw mut key, size, flags.into())
    };
    if got != 0 {
        return Err(Reason::InvalidVni);
    }
    if underlay::is_ipv6() {
        // SAFETY: the flag asked for a tunnel over IPv6.
        let remote = Ip6::from_words(unsafe { key.__bindgen_anon_1.remote_ipv6 });
        let sender = underlay::node_of(&remote).ok_or(Reason::NotPeer)?;
        return Ok((key.tunnel_id, sender));
    }
    // SAFETY: the tunnel is over IPv4. The helper gives its addresses in host order.
    Ok((key.tunnel_id, Be32::new(unsafe { key.__bindgen_anon_1.remote_ipv4 })))
}
