//! Where packets go: into a container, up the host's stack, into the tunnel, out to a client.

pub mod route6;

use core::mem::size_of;

use aya_ebpf::cty::c_void;
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
    },
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Mac, Reason,
    maps::{Backend, Config, ENDPOINT_FLAG_HOST, ENDPOINT_LOCAL, Endpoint},
    wire::{ETHERTYPE_IPV4, Ethernet},
};

use crate::{
    maps::{config, work::scratch},
    outcome::{self, Outcome, Verdict},
    packet::frame::{ETH_LEN, ifindex, longest, mark_for_host, store},
};

const _: () = assert!(size_of::<FibLookup>() == 64 && align_of::<FibLookup>() <= 8);

/// Address family of IPv4 in `bpf_fib_lookup`.
const AF_INET: u8 = 2;

/// Where a packet leaves the host.
pub struct NextHop {
    /// Index of the interface it leaves by.
    pub ifindex: u32,
    /// Its Ethernet header; the MACs are zero when the kernel has yet to resolve them.
    pub ethernet: Ethernet,
    /// MTU of the route in bytes (Linux 5.12); 0 when it is not resolved, or not 16 bits long.
    pub mtu: u16,
    /// Whether the MACs are known.
    pub resolved: bool,
}

/// Sends the packet out of an interface; the kernel resolves and fills in the MACs where they are
/// not known.
#[inline(always)]
pub fn send(ifindex: u32, resolved: bool) -> i32 {
    // SAFETY: helpers without preconditions; a null parameter makes the kernel route by the packet's
    // own addresses.
    unsafe {
        if resolved {
            bpf_redirect(ifindex, 0) as i32
        } else {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
        }
    }
}

/// The next hop from `addresses.0` to `addresses.1` by the host's routing table. `total` is the
/// length of the IPv4 packet for the check against the route's MTU.
///
/// The look-up is made as for a packet that came in by the host link: that device is ours and has
/// forwarding on, whatever the host's own interfaces have.
///
/// # Errors
/// [`Reason::TooBig`] and [`Reason::NoRoute`].
#[inline(always)]
pub fn next_hop(
    ctx: *mut c_void,
    config: &Config,
    addresses: (Be32, Be32),
    total: u32,
) -> Result<NextHop, Reason> {
    let params = question(config, addresses, total)?;
    let result = ask(ctx, params);
    answer(config, params, result)
}

/// Asks the routing table.
#[inline(always)]
pub fn ask(ctx: *mut c_void, params: &mut FibLookup) -> u32 {
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the program's own, and the kernel fills in `params` as far as told.
    unsafe { bpf_fib_lookup(ctx, &raw mut *params, size, 0) as u32 }
}

/// What the routing table said of the way of an IPv4 packet.
///
/// # Errors
/// [`Reason::TooBig`] and [`Reason::NoRoute`].
#[inline(always)]
pub fn answer(config: &Config, params: &FibLookup, result: u32) -> Result<NextHop, Reason> {
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => Ok(NextHop {
            ifindex: params.ifindex,
            ethernet: header(Mac::new(params.smac), Mac::new(params.dmac)),
            // SAFETY: both fields of the union are the same integer.
            mtu: unsafe { params.__bindgen_anon_1.mtu_result },
            resolved: true,
        }),
        BPF_FIB_LKUP_RET_NO_NEIGH => Ok(unresolved(params.ifindex)),
        // Only when the host link does not exist (a datapath loaded without a controller).
        BPF_FIB_LKUP_RET_FWD_DISABLED => Ok(unresolved(config.underlay_ifindex)),
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(Reason::TooBig),
        _ => Err(Reason::NoRoute),
    }
}

/// What to ask of the routing table, in the scratch area.
#[inline(always)]
fn question(
    config: &Config,
    addresses: (Be32, Be32),
    total: u32,
) -> Result<&'static mut FibLookup, Reason> {
    let fib = &mut scratch()?.fib;
    *fib = [0; 8];
    // SAFETY: the struct is plain C, as large as its room and no more aligned; zero is a value of it.
    let params = unsafe { &mut *fib.as_mut_ptr().cast::<FibLookup>() };
    params.family = AF_INET;
    params.ifindex = via(config);
    params.__bindgen_anon_1.tot_len = if total > 0xffff { 0xffff } else { total as u16 };
    params.__bindgen_anon_3.ipv4_src = addresses.0.raw();
    params.__bindgen_anon_4.ipv4_dst = addresses.1.raw();
    Ok(params)
}

/// MTU in bytes of the path that [`next_hop`] found too small. What the host has learned of a path
/// by ICMP counts (RFC 1191): it is in the routing table.
///
/// # Errors
/// [`Reason::NoRoute`] when there is none any more.
#[inline(always)]
pub fn path_mtu(ctx: *mut c_void, config: &Config, addresses: (Be32, Be32)) -> Result<u32, Reason> {
    let params = question(config, addresses, 0xffff)?;
    let result = ask(ctx, params);
    mtu_of(params, result)
}

/// The MTU in the answer of a look-up for a packet that is too big.
///
/// # Errors
/// [`Reason::NoRoute`] for another answer.
#[inline(always)]
pub fn mtu_of(params: &FibLookup, result: u32) -> Result<u32, Reason> {
    if result == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        // SAFETY: the kernel has written the MTU over the length (Linux 5.12).
        Ok(unsafe { params.__bindgen_anon_1.mtu_result }.into())
    } else {
        Err(Reason::NoRoute)
    }
}

/// [`path_mtu`] of the way on which [`route_out`] said [`Reason::TooBig`].
///
/// # Errors
/// Those of [`path_mtu`].
#[inline(always)]
pub fn outside_mtu(ctx: &TcContext, from: Be32, to: Be32) -> Result<u32, Reason> {
    outcome::unpack(outside_mtu_packed(ctx.skb.skb, from.raw(), to.raw()))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn outside_mtu_packed(skb: *mut __sk_buff, from: u32, to: u32) -> i64 {
    let (from, to) = (Be32::from_raw(from), Be32::from_raw(to));
    let Some(config) = config() else { return outcome::pack(Err(Reason::NotConfigured)) };
    outcome::pack(path_mtu(skb.cast(), config, (from, to)))
}

/// The interface that packets are looked up for as if they came in by it.
#[inline(always)]
pub fn via(config: &Config) -> u32 {
    if config.host_link_ifindex != 0 { config.host_link_ifindex } else { config.underlay_ifindex }
}

#[inline(always)]
fn unresolved(ifindex: u32) -> NextHop {
    let ethernet = header(Mac::default(), Mac::default());
    NextHop { ifindex, ethernet, mtu: 0, resolved: false }
}

#[inline(always)]
fn header(src: Mac, dst: Mac) -> Ethernet {
    Ethernet { dst, src, ethertype: Be16::new(ETHERTYPE_IPV4) }
}

/// Puts an IPv4 packet into a local endpoint, with `source` as the Ethernet source.
///
/// # Errors
/// [`Reason::RewriteRefused`].
#[inline(always)]
pub fn deliver(ctx: &TcContext, endpoint: &Endpoint, source: Mac, reason: Reason) -> Outcome {
    deliver_as(ETHERTYPE_IPV4, ctx, endpoint, source, reason)
}

/// As [`deliver`], for a packet of any EtherType.
///
/// # Errors
/// Those of [`deliver`].
#[inline(always)]
pub fn deliver_as(
    ethertype: u16,
    ctx: &TcContext,
    endpoint: &Endpoint,
    source: Mac,
    reason: Reason,
) -> Outcome {
    let ethernet = Ethernet { dst: endpoint.mac, src: source, ethertype: Be16::new(ethertype) };
    store(ctx, 0, &ethernet)?;
    if endpoint.flags & ENDPOINT_FLAG_HOST != 0 {
        // Both ends of the host link are in this namespace, where redirect_peer refuses.
        // SAFETY: a helper without preconditions.
        let action = unsafe { bpf_redirect(endpoint.ifindex, 0) };
        return Ok(Verdict::Delivered(action as i32, Reason::DeliveredHost, endpoint.slot));
    }
    mark_for_host(ctx);
    // SAFETY: a helper without preconditions.
    let action = unsafe { bpf_redirect_peer(endpoint.ifindex, 0) };
    Ok(Verdict::Delivered(action as i32, reason, endpoint.slot))
}

/// As [`deliver_as`], into a backend on this node.
///
/// # Errors
/// Those of [`deliver`].
#[inline(always)]
pub fn deliver_backend_as(
    ethertype: u16,
    ctx: &TcContext,
    backend: &Backend,
    source: Mac,
) -> Outcome {
    let endpoint = Endpoint {
        kind: ENDPOINT_LOCAL,
        mac: backend.mac,
        ifindex: backend.ifindex,
        slot: backend.slot,
        ..Endpoint::default()
    };
    deliver_as(ethertype, ctx, &endpoint, source, Reason::DeliveredLocal)
}

/// Sends a packet back out of the interface it came in by.
#[inline(always)]
pub fn back_out(ctx: &TcContext, reason: Reason) -> Verdict {
    // SAFETY: a helper without preconditions.
    let action = unsafe { bpf_redirect(ifindex(ctx), 0) };
    Verdict::Done(action as i32, reason)
}

/// Routes a packet with addresses of the underlay (an un-NATed reply) out of the host.
///
/// # Errors
/// Those of [`next_hop`].
#[inline(always)]
pub fn route_out(ctx: &TcContext, from: Be32, to: Be32) -> Outcome {
    let action = outcome::unpack(route_out_packed(ctx.skb.skb, from.raw(), to.raw()))?;
    Ok(Verdict::Done(action as i32, Reason::SentToClient))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn route_out_packed(skb: *mut __sk_buff, from: u32, to: u32) -> i64 {
    let (from, to) = (Be32::from_raw(from), Be32::from_raw(to));
    let ctx = TcContext::new(skb);
    outcome::pack(route(&ctx, from, to).map(|action| action as u32))
}

#[inline(always)]
fn route(ctx: &TcContext, from: Be32, to: Be32) -> Result<i32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let hop = next_hop(ctx.skb.skb.cast(), config, (from, to), longest(ctx, ETH_LEN))?;
    store(ctx, 0, &hop.ethernet)?;
    Ok(send(hop.ifindex, hop.resolved))
}
