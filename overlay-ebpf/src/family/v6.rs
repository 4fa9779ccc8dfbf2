//! IPv6: the header is in the work area, and the tables name its addresses by ids
//! ([`crate::maps::addr6_id`]).

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be32, Ip6, Mac, Reason,
    maps::{
        CONNTRACK_FORWARD, ENDPOINT_LOCAL, Endpoint, Link, Link6, NETWORK_INTERNAL, Network,
        Published,
    },
    wire::{ETHERTYPE_IPV6, Ethernet},
};

use super::{Family, Outward, Sent};
use crate::{
    answer::{icmp6, reject6},
    forward::route,
    maps::{
        CONNTRACK, LINKS6, NETWORKS, SERVICES, addr6_id, config,
        endpoint::find6,
        lookup,
        work::{Area, PART_QUOTED, area},
    },
    nat::rewrite6,
    outcome::{self, Outcome, Stop},
    packet::{
        flow6,
        frame::{ETH_LEN, is_gso, load},
    },
    service::{conntrack, dsr, dsr6, published},
    tunnel::{underlay, vxlan, vxlan6},
};

/// IPv6.
pub struct V6;

impl Family for V6 {
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    /// The header is in the work area.
    type Header = ();
    type Address = Ip6;

    #[inline(always)]
    fn flow(ctx: &TcContext, _ip: &(), offset: usize, vni: u32, _work: Area) -> Result<(), Reason> {
        // An address without an id has no flow.
        if flow6::find(ctx, offset, vni)? { Ok(()) } else { Err(Reason::ServiceProtocol) }
    }

    #[inline(always)]
    fn flow_from_outside(
        ctx: &TcContext,
        _ip: &(),
        offset: usize,
        vni: u32,
        _work: Area,
    ) -> Result<(), Reason> {
        flow6::read(ctx, offset)?;
        if flow6::name(ctx, vni, flow6::MAY_BE_NEW)? { Ok(()) } else { Err(Reason::ConntrackFull) }
    }

    #[inline(always)]
    fn outward(
        packet: &Sent<'_, Self>,
        network: &Network,
        mut work: Area,
    ) -> Result<Outward, Reason> {
        let Sent { ctx, link, .. } = packet;
        flow6::read(ctx, ETH_LEN).map_err(|_| Reason::NoWayOut)?;
        if let Some(published) = own_port(ctx, link, network, work)? {
            return Ok(Outward::OwnPort(published));
        }
        if !flow6::name(ctx, link.vni, 0)? {
            return Err(Reason::NoWayOut);
        }
        let work = &mut *work;
        Ok(Outward::Elsewhere(conntrack::find(&work.flow, &mut work.entry)))
    }

    /// `from_container` has checked it before the tail call.
    #[inline(always)]
    fn is_in_own_subnet(_packet: &Sent<'_, Self>, _network: &Network) -> bool {
        false
    }

    /// Sockets send to the MAC that they have learned, and the backend's IPv4 address follows from
    /// it.
    #[inline(always)]
    fn stale_backend(packet: &Sent<'_, Self>) -> Option<Be32> {
        Some(addr6_id::ipv4_of(packet.ethernet.dst))
    }

    #[inline(always)]
    fn reset_stale(ctx: &TcContext) -> Result<bool, Reason> {
        Ok(outcome::unpack(reset_stale_packed(ctx.skb.skb))? != 0)
    }

    /// IPv6 has no source NAT.
    #[inline(always)]
    fn leave(_packet: &Sent<'_, Self>, _network: &Network, _work: Area, _action: u8) -> Outcome {
        Err(Reason::NoWayOut)
    }

    /// `from_container` has answered it.
    #[inline(always)]
    fn echo(_packet: &Sent<'_, Self>) -> Option<Outcome> {
        None
    }

    #[inline(always)]
    fn translate(ctx: &TcContext, _ip: &(), transport: usize, _work: Area) -> Result<(), Reason> {
        rewrite6::translate(ctx, transport)
    }

    #[inline(always)]
    fn undo(ctx: &TcContext, transport: usize, _work: Area) -> Result<(), Reason> {
        rewrite6::undo(ctx, transport)
    }

    #[inline(always)]
    fn local_client(mut work: Area, vni: u32) -> Result<Endpoint, Reason> {
        let to = work.ipv6.new[1];
        match find6(&mut work.ipv6, vni, to) {
            Some(ENDPOINT_LOCAL) => Ok(work.ipv6.endpoint),
            _ => Err(Reason::NoEndpoint),
        }
    }

    #[inline(always)]
    fn is_inside(_ip: &(), vni: u32, mut work: Area) -> bool {
        let work = &mut work.ipv6;
        addr6_id::inside(vni, &work.ip.src, &mut work.key) != addr6_id::NONE
    }

    #[inline(always)]
    fn is_in_subnet(_ip: &(), _network: &Network, endpoint: &Endpoint) -> Result<bool, Reason> {
        let link: Link6 = lookup(&LINKS6, &endpoint.ifindex).ok_or(Reason::NoEndpoint)?;
        Ok(area()?.ipv6.ip.src.is_equal_under(&link.ip, &link.mask))
    }

    #[inline(always)]
    fn gateway_mac(_ip: &(), work: Area) -> Result<Mac, Reason> {
        let (vni, ifindex) = (work.backend.vni, work.backend.ifindex);
        let link: Option<Link6> = lookup(&LINKS6, &ifindex);
        let source = work.ipv6.ip.src;
        if link.is_some_and(|link| source.is_equal_under(&link.ip, &link.mask))
            || Self::is_inside(&(), vni, work)
        {
            return Err(Reason::SpoofedInnerSource);
        }
        let network: Option<Network> = lookup(&NETWORKS, &vni);
        Ok(network.map_or(Mac::default(), |network| Mac::of_ip(network.gateway)))
    }

    #[inline(always)]
    fn keep(work: Area) {
        addr6_id::keep_both(&work);
    }

    #[inline(always)]
    fn keep_reverse(work: Area) {
        let reply = conntrack::reply_key(&work.flow.key, &work.entry);
        if let Some(reply) = CONNTRACK.get_ptr(&reply) {
            // SAFETY: as in `conntrack::update`.
            let frontend = unsafe { (*reply).saddr };
            // Keep the client's address while the flow is in use, and with DSR the frontend's
            // address.
            addr6_id::keep(work.flow.key.saddr);
            addr6_id::keep(frontend);
        }
    }

    #[inline(always)]
    fn frontend(work: Area) -> Ip6 {
        work.ipv6.ip.dst
    }

    #[inline(always)]
    fn dsr_header(work: Area, frontend: &Ip6, otherwise: Ethernet) -> Ethernet {
        dsr::header6(&work, frontend, otherwise)
    }

    #[inline(always)]
    fn dsr_frontend(ctx: &TcContext, _outer: usize) -> Result<u64, Reason> {
        Ok(dsr6::frontend(ctx))
    }

    #[inline(always)]
    fn send_dsr(ctx: &TcContext, _ip: &(), _work: Area) -> Outcome {
        dsr6::send(ctx)
    }

    #[inline(always)]
    fn route_egress(ctx: &TcContext, _work: Area) -> Outcome {
        route::route_egress6(ctx)
    }

    #[inline(always)]
    fn egress_mtu(ctx: &TcContext, _work: Area) -> Result<u32, Reason> {
        route::egress_mtu6(ctx)
    }

    #[inline(always)]
    fn reset(ctx: &TcContext) -> Result<bool, Reason> {
        reject6::reset(ctx)
    }

    #[inline(always)]
    fn answer_closed_port(ctx: &TcContext) -> Result<(), Reason> {
        outcome::unpack(answer_closed_port6_packed(ctx.skb.skb)).map(|_| ())
    }

    #[inline(always)]
    fn too_big_from_gateway(
        ctx: &TcContext,
        _vni: u32,
        mtu: u32,
        translated: bool,
    ) -> Result<(), Reason> {
        if translated {
            let work = area()?;
            Self::undo(ctx, usize::from(work.flow.transport), work)?;
        }
        icmp6::from_gateway(ctx)?;
        icmp6::too_big(ctx, mtu)
    }

    #[inline(always)]
    fn too_big_from_frontend(
        ctx: &TcContext,
        frontend: &Ip6,
        mtu: u32,
        mut work: Area,
    ) -> Result<(), Reason> {
        Self::undo(ctx, usize::from(work.flow.transport), work)?;
        work.ipv6.router = *frontend;
        work.ipv6.router_mac = load::<Ethernet>(ctx, 0)?.dst;
        icmp6::too_big(ctx, mtu)
    }

    #[inline(always)]
    fn too_big_to_backend(
        ctx: &TcContext,
        transport: usize,
        mtu: u32,
        mut work: Area,
    ) -> Result<(), Reason> {
        work.ipv6.router = work.ipv6.new[0];
        work.ipv6.router_mac = Mac::default();
        Self::undo(ctx, transport, work)?;
        icmp6::too_big(ctx, mtu)
    }

    #[inline(always)]
    fn pop(ctx: &TcContext, _ip: &(), _outer: usize, leaves: bool) -> Result<(), Stop> {
        pop(ctx, leaves)
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn answer_closed_port6_packed(skb: *mut __sk_buff) -> i64 {
    let ctx = TcContext::new(skb);
    let answered = match reject6::reset(&ctx) {
        Ok(false) => icmp6::port_unreachable(&ctx),
        reset => reset.map(|_| ()),
    };
    outcome::pack(answered.map(|()| 0))
}

#[inline(never)]
fn reset_stale_packed(skb: *mut __sk_buff) -> i64 {
    let ctx = TcContext::new(skb);
    let reset = flow6::read(&ctx, ETH_LEN).and_then(|()| reject6::reset(&ctx));
    outcome::pack(reset.map(u32::from))
}

/// Removes the outer headers in front of the packet in the work area. `leaves` says that the packet
/// then leaves the host.
///
/// # Errors
/// [`Stop::ToKernel`] if the kernel's device must remove them.
#[inline(always)]
pub fn pop(ctx: &TcContext, leaves: bool) -> Result<(), Stop> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let protocol = area()?.ipv6.ip.next_header;
    vxlan::leave_aggregate(ctx, protocol, config.decap_flags)?;
    // As for IPv4: the mark that an aggregate may keep could mislead a NIC.
    if leaves && is_gso(ctx) && config.decap_flags == 0 {
        return Err(Stop::ToKernel);
    }
    if underlay::is_ipv6() {
        vxlan6::remove(ctx, ETHERTYPE_IPV6, config.decap_flags)
    } else {
        vxlan::remove_ipv6(ctx, config.decap_flags)
    }
}

/// The published port of a container's packet to one of this host's addresses. The flow has its ids
/// then.
#[inline(always)]
fn own_port(
    ctx: &TcContext,
    link: &Link,
    network: &Network,
    mut work: Area,
) -> Result<Option<Published>, Reason> {
    if network.flags & NETWORK_INTERNAL != 0 || !published::is_on_host6(&work.ipv6.ip.dst) {
        return Ok(None);
    }
    if work.flow.part == PART_QUOTED {
        // The error's flow has a backend: the published port does not matter. Its sender may be
        // outside of the backend's network, or on it.
        for how in [0, flow6::SOURCE_OUTSIDE] {
            if flow6::name(ctx, link.vni, how)? {
                let work = &mut *work;
                if conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_FORWARD {
                    return Ok(Some(Published::default()));
                }
            }
        }
        return Ok(None);
    }
    // Only the flow of a later fragment has its port.
    let is_later = work.ipv6.fragment == flow6::LATER_FRAGMENT;
    if is_later && !name_client(ctx, link, 0)? {
        return Ok(None);
    }
    let (proto, port) = (work.flow.key.proto, work.flow.key.dport);
    let Some(published) = published::find_on_host6(&work.ipv6.ip.dst, proto, port) else {
        return Ok(None);
    };
    let on_network =
        lookup(&SERVICES, &published.service).is_some_and(|service| service.vni == link.vni);
    let how = if on_network { 0 } else { flow6::SOURCE_OUTSIDE };
    let named = flow6::name(ctx, link.vni, how | flow6::MAY_BE_NEW)?;
    Ok(if named { Some(published) } else { None })
}

/// Names a later fragment's flow by either id of its sender.
#[inline(always)]
fn name_client(ctx: &TcContext, link: &Link, how: u32) -> Result<bool, Reason> {
    match flow6::name(ctx, link.vni, how) {
        Ok(true) => Ok(true),
        Ok(false) | Err(Reason::Fragment) => {
            flow6::name(ctx, link.vni, how | flow6::SOURCE_OUTSIDE)
        }
        error => error,
    }
}
