//! The way of IPv6 packets out of the host, as `forward` has it for IPv4: to other nodes on an IPv6 underlay,
//! and to clients outside.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup as FibLookup},
    cty::c_void,
    programs::TcContext,
};
use overlay_common::{Be16, Ip6, Reason, maps::Config, wire::ETHERTYPE_IPV6};

use crate::{
    forward::{NextHop, answer, ask, mtu_of, send, via},
    maps::{
        config,
        work::{scratch, work},
    },
    outcome::{self, Outcome, Verdict},
    packet::frame::{ETH_LEN, longest, store},
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
    next_hop_from(ctx, config, (&config.vtep6, to), total)
}

/// As [`next_hop`], from an address of the host.
///
/// # Errors
/// Those of [`next_hop`].
#[inline(always)]
pub fn next_hop_from(
    ctx: *mut c_void,
    config: &Config,
    ends: (&Ip6, &Ip6),
    total: u32,
) -> Result<NextHop, Reason> {
    let params = question(config, ends, total)?;
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
    path_mtu_from(ctx, config, (&config.vtep6, to))
}

#[inline(always)]
fn path_mtu_from(ctx: *mut c_void, config: &Config, ends: (&Ip6, &Ip6)) -> Result<u32, Reason> {
    let params = question(config, ends, 0xffff)?;
    let result = ask(ctx, params);
    mtu_of(params, result)
}

/// What to ask of the routing table, in the scratch area.
#[inline(always)]
fn question(
    config: &Config,
    (from, to): (&Ip6, &Ip6),
    total: u32,
) -> Result<&'static mut FibLookup, Reason> {
    let fib = &mut scratch()?.fib;
    const { assert!(size_of::<FibLookup>() == 64) };
    *fib = [0; 8];
    // SAFETY: the struct is plain C, as large as its room and no more aligned; zero is a value of it.
    let params = unsafe { &mut *fib.as_mut_ptr().cast::<FibLookup>() };
    params.family = AF_INET6;
    params.ifindex = via(config);
    params.__bindgen_anon_1.tot_len = if total > 0xffff { 0xffff } else { total as u16 };
    params.__bindgen_anon_3.ipv6_src = from.words();
    params.__bindgen_anon_4.ipv6_dst = to.words();
    Ok(params)
}

/// Routes the packet, with addresses of the outside in `work.ipv6.new`, out of the host: a reply to a client.
///
/// # Errors
/// Those of [`next_hop`].
#[inline(always)]
pub fn route_out(ctx: &TcContext) -> Outcome {
    let action = outcome::unpack(route_out6_packed(ctx.skb.skb))?;
    Ok(Verdict::Done(action as i32, Reason::SentToClient))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn route_out6_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(route(&TcContext::new(skb)).map(|action| action as u32))
}

#[inline(always)]
fn route(ctx: &TcContext) -> Result<i32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let [from, to] = &work()?.ipv6.new;
    let mut hop = next_hop_from(ctx.skb.skb.cast(), config, (from, to), longest(ctx, ETH_LEN))?;
    hop.ethernet.ethertype = Be16::new(ETHERTYPE_IPV6);
    store(ctx, 0, &hop.ethernet)?;
    Ok(send(hop.ifindex, hop.resolved))
}

/// [`path_mtu`] of the way on which [`route_out`] said [`Reason::TooBig`].
///
/// # Errors
/// Those of [`path_mtu`].
#[inline(always)]
pub fn outside_mtu(ctx: &TcContext) -> Result<u32, Reason> {
    outcome::unpack(outside_mtu6_packed(ctx.skb.skb))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn outside_mtu6_packed(skb: *mut __sk_buff) -> i64 {
    let (Some(config), Ok(work)) = (config(), work()) else {
        return outcome::pack(Err(Reason::NotConfigured));
    };
    let [from, to] = &work.ipv6.new;
    outcome::pack(path_mtu_from(skb.cast(), config, (from, to)))
}
