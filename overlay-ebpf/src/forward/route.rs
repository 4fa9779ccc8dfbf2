//! Routes packets by the host's routing table.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
    },
    cty::c_void,
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use overlay_common::{
    Be16, Be32, Ip6, Mac, Reason,
    maps::Config,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet},
};

use crate::{
    maps::{
        config,
        work::{scratch, work},
    },
    outcome::{self, Outcome, Verdict},
    packet::frame::{ETH_LEN, longest, store},
};

const _: () = assert!(size_of::<FibLookup>() == 64 && align_of::<FibLookup>() <= 8);

/// The next hop of a packet that leaves the host.
pub struct NextHop {
    /// Index of the output interface.
    pub ifindex: u32,
    /// The packet's Ethernet header. The MACs are zero while the kernel resolves them.
    pub ethernet: Ethernet,
    /// MTU of the route in bytes (Linux 5.12); 0 without a resolved neighbour, or if it has more
    /// than 16 bits.
    pub mtu: u16,
    /// Whether the MACs are known.
    pub resolved: bool,
}

/// Source and destination of a packet for the routing table, of either family.
pub trait Ends: Copy {
    /// The address family (`AF_*`).
    const FAMILY: u8;
    /// EtherType of the family.
    const ETHERTYPE: u16;

    /// Fills in the parameters of a look-up.
    fn fill(self, params: &mut FibLookup);
}

impl Ends for (Be32, Be32) {
    const FAMILY: u8 = 2;
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;

    #[inline(always)]
    fn fill(self, params: &mut FibLookup) {
        params.__bindgen_anon_3.ipv4_src = self.0.raw();
        params.__bindgen_anon_4.ipv4_dst = self.1.raw();
    }
}

/// The host link has IPv6 forwarding on for these look-ups.
impl Ends for (&Ip6, &Ip6) {
    const FAMILY: u8 = 10;
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;

    #[inline(always)]
    fn fill(self, params: &mut FibLookup) {
        params.__bindgen_anon_3.ipv6_src = self.0.words();
        params.__bindgen_anon_4.ipv6_dst = self.1.words();
    }
}

/// Sends the packet out of an interface. If the MACs are unresolved, the kernel resolves and fills
/// them in.
#[inline(always)]
pub fn send(ifindex: u32, resolved: bool) -> i32 {
    // SAFETY: helpers without preconditions; with a null parameter the kernel routes by the
    // packet's own addresses.
    unsafe {
        if resolved {
            bpf_redirect(ifindex, 0) as i32
        } else {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
        }
    }
}

/// The next hop between two addresses by the host's routing table. `total` is the length in bytes
/// of the IP packet, for the check against the route's MTU.
///
/// The look-up names the host link as input interface, because that device belongs to overlay and
/// has forwarding on. The host's own interfaces may have it off.
///
/// # Errors
/// [`Reason::TooBig`] and [`Reason::NoRoute`].
#[inline(always)]
pub fn next_hop<E: Ends>(
    ctx: *mut c_void,
    config: &Config,
    ends: E,
    total: u32,
) -> Result<NextHop, Reason> {
    let params = lookup_params(config, ends, total)?;
    match look_up(ctx, params) {
        BPF_FIB_LKUP_RET_SUCCESS => Ok(NextHop {
            ifindex: params.ifindex,
            ethernet: Ethernet {
                dst: Mac::new(params.dmac),
                src: Mac::new(params.smac),
                ethertype: Be16::new(E::ETHERTYPE),
            },
            // SAFETY: both fields of the union are the same integer.
            mtu: unsafe { params.__bindgen_anon_1.mtu_result },
            resolved: true,
        }),
        BPF_FIB_LKUP_RET_NO_NEIGH => Ok(unresolved::<E>(params.ifindex)),
        // This happens only without a host link (a datapath that was loaded without a controller).
        BPF_FIB_LKUP_RET_FWD_DISABLED => Ok(unresolved::<E>(config.underlay_ifindex)),
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(Reason::TooBig),
        _ => Err(Reason::NoRoute),
    }
}

/// MTU in bytes of the path that [`next_hop`] found too small. It includes path MTUs that the host
/// has learned by ICMP (RFC 1191, RFC 8201), because they are in the routing table.
///
/// # Errors
/// [`Reason::NoRoute`] if the route is gone.
#[inline(always)]
pub fn path_mtu<E: Ends>(ctx: *mut c_void, config: &Config, ends: E) -> Result<u32, Reason> {
    let params = lookup_params(config, ends, 0xffff)?;
    if look_up(ctx, params) != BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return Err(Reason::NoRoute);
    }
    // SAFETY: the kernel has written the MTU over the length (Linux 5.12).
    Ok(unsafe { params.__bindgen_anon_1.mtu_result }.into())
}

/// Looks up the routing table.
#[inline(always)]
fn look_up(ctx: *mut c_void, params: &mut FibLookup) -> u32 {
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the program's own, and the kernel fills in `params` up to the size
    // given.
    unsafe { bpf_fib_lookup(ctx, &raw mut *params, size, 0) as u32 }
}

/// The parameters of a look-up, in the scratch area.
#[inline(always)]
fn lookup_params<E: Ends>(
    config: &Config,
    ends: E,
    total: u32,
) -> Result<&'static mut FibLookup, Reason> {
    let fib = &mut scratch()?.fib;
    *fib = [0; 8];
    // SAFETY: the struct is plain C, as large as the area and no more aligned; zero is a valid
    // value of it.
    let params = unsafe { &mut *fib.as_mut_ptr().cast::<FibLookup>() };
    params.family = E::FAMILY;
    params.ifindex = via(config);
    params.__bindgen_anon_1.tot_len = if total > 0xffff { 0xffff } else { total as u16 };
    ends.fill(params);
    Ok(params)
}

/// The input interface that look-ups name.
#[inline(always)]
pub fn via(config: &Config) -> u32 {
    if config.host_link_ifindex != 0 { config.host_link_ifindex } else { config.underlay_ifindex }
}

#[inline(always)]
fn unresolved<E: Ends>(ifindex: u32) -> NextHop {
    let ethernet = Ethernet { ethertype: Be16::new(E::ETHERTYPE), ..Ethernet::default() };
    NextHop { ifindex, ethernet, mtu: 0, resolved: false }
}

/// Routes a packet with addresses of the underlay (a translated reply) out of the host.
///
/// # Errors
/// Those of [`next_hop`].
#[inline(always)]
pub fn route_egress(ctx: &TcContext, from: Be32, to: Be32) -> Outcome {
    let action = outcome::unpack(route_egress_packed(ctx.skb.skb, from.raw(), to.raw()))?;
    Ok(Verdict::done(action as i32, Reason::SentToClient))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn route_egress_packed(skb: *mut __sk_buff, from: u32, to: u32) -> i64 {
    route(&TcContext::new(skb), (Be32::from_raw(from), Be32::from_raw(to)))
}

/// As [`route_egress`], for an IPv6 packet with the addresses in `work.ipv6.new`.
///
/// # Errors
/// Those of [`next_hop`].
#[inline(always)]
pub fn route_egress6(ctx: &TcContext) -> Outcome {
    let action = outcome::unpack(route_egress6_packed(ctx.skb.skb))?;
    Ok(Verdict::done(action as i32, Reason::SentToClient))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn route_egress6_packed(skb: *mut __sk_buff) -> i64 {
    let Ok(work) = work() else { return outcome::pack(Err(Reason::NotConfigured)) };
    let [from, to] = &work.ipv6.new;
    route(&TcContext::new(skb), (from, to))
}

#[inline(always)]
fn route<E: Ends>(ctx: &TcContext, ends: E) -> i64 {
    outcome::pack(try_route(ctx, ends).map(|action| action as u32))
}

#[inline(always)]
fn try_route<E: Ends>(ctx: &TcContext, ends: E) -> Result<i32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let hop = next_hop(ctx.skb.skb.cast(), config, ends, longest(ctx, ETH_LEN))?;
    store(ctx, 0, &hop.ethernet)?;
    Ok(send(hop.ifindex, hop.resolved))
}

/// [`path_mtu`] of the path for which [`route_egress`] returned [`Reason::TooBig`].
///
/// # Errors
/// Those of [`path_mtu`].
#[inline(always)]
pub fn egress_mtu(ctx: &TcContext, from: Be32, to: Be32) -> Result<u32, Reason> {
    outcome::unpack(egress_mtu_packed(ctx.skb.skb, from.raw(), to.raw()))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn egress_mtu_packed(skb: *mut __sk_buff, from: u32, to: u32) -> i64 {
    let ends = (Be32::from_raw(from), Be32::from_raw(to));
    let Some(config) = config() else { return outcome::pack(Err(Reason::NotConfigured)) };
    outcome::pack(path_mtu(skb.cast(), config, ends))
}

/// As [`egress_mtu`], for [`route_egress6`].
///
/// # Errors
/// Those of [`path_mtu`].
#[inline(always)]
pub fn egress_mtu6(ctx: &TcContext) -> Result<u32, Reason> {
    outcome::unpack(egress_mtu6_packed(ctx.skb.skb))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn egress_mtu6_packed(skb: *mut __sk_buff) -> i64 {
    let (Some(config), Ok(work)) = (config(), work()) else {
        return outcome::pack(Err(Reason::NotConfigured));
    };
    let [from, to] = &work.ipv6.new;
    outcome::pack(path_mtu(skb.cast(), config, (from, to)))
}
