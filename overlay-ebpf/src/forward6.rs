//! The way to other nodes on an IPv6 underlay, as `forward` has it for IPv4.

use core::mem::size_of;

use aya_ebpf::{bindings::bpf_fib_lookup as FibLookup, cty::c_void};
use overlay_common::{Be16, Ip6, Reason, maps::Config, wire::ETHERTYPE_IPV6};

use crate::{
    forward::{NextHop, answer, ask, mtu_of, via},
    maps::scratch,
};

/// Address family of IPv6 in `bpf_fib_lookup`.
const AF_INET6: u8 = 10;

/// The next hop to `to`. `total` is the length of the IPv6 packet for the check against the route's MTU.
/// The host link has IPv6 forwarding on for this.
///
/// # Errors
/// [`Reason::TooBig`] and [`Reason::NoRoute`].
#[inline(always)]
pub fn next_hop(
    ctx: *mut c_void,
    config: &Config,
    to: &Ip6,
    total: u32,
) -> Result<NextHop, Reason> {
    let params = question(config, to, total)?;
    let result = ask(ctx, params);
    let mut hop = answer(config, params, result)?;
    hop.ethernet.ethertype = Be16::new(ETHERTYPE_IPV6);
    Ok(hop)
}

/// MTU in bytes of the path that [`next_hop`] found too small.
///
/// # Errors
/// [`Reason::NoRoute`] when there is none any more.
#[inline(always)]
pub fn path_mtu(ctx: *mut c_void, config: &Config, to: &Ip6) -> Result<u32, Reason> {
    let params = question(config, to, 0xffff)?;
    let result = ask(ctx, params);
    mtu_of(params, result)
}

/// What to ask of the routing table, in the scratch area.
#[inline(always)]
fn question(config: &Config, to: &Ip6, total: u32) -> Result<&'static mut FibLookup, Reason> {
    let fib = &mut scratch()?.fib;
    const { assert!(size_of::<FibLookup>() == 64) };
    *fib = [0; 8];
    // SAFETY: the struct is plain C, as large as its room and no more aligned; zero is a value of it.
    let params = unsafe { &mut *fib.as_mut_ptr().cast::<FibLookup>() };
    params.family = AF_INET6;
    params.ifindex = via(config);
    params.__bindgen_anon_1.tot_len = if total > 0xffff { 0xffff } else { total as u16 };
    params.__bindgen_anon_3.ipv6_src = config.vtep6.words();
    params.__bindgen_anon_4.ipv6_dst = to.words();
    Ok(params)
}
