//! IPv4: the header is on the stack, and the tables have its addresses.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be32, Frontend, Mac, Reason,
    maps::{
        CONNTRACK_FORWARD, ENDPOINT_FLAG_HOST, ENDPOINT_LOCAL, Endpoint, EndpointKey,
        NETWORK_INTERNAL, Network, Published,
    },
    wire::{ETHERTYPE_IPV4, Ethernet, Ipv4, PROTO_SCTP, PROTO_TCP},
};

use super::{Family, Outward, Sent};
use crate::{
    answer::{
        echo,
        icmp::{self, Router},
        reject,
    },
    forward::{deliver::back_out, route},
    maps::{
        ENDPOINTS, NETWORKS, config, lookup,
        work::{Area, PART_QUOTED, area},
    },
    nat,
    outcome::{self, Outcome, Stop},
    packet::{
        flow,
        frame::{ETH_LEN, is_gso, load},
        ipv4::is_icmp,
    },
    service::{conntrack, dsr, published, snat},
    tunnel::{
        vxlan,
        vxlan6::{self, INNER6},
    },
};

/// IPv4.
pub struct V4;

impl Family for V4 {
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    type Header = Ipv4;
    type Address = Be32;

    #[inline(always)]
    fn flow(
        ctx: &TcContext,
        ip: &Ipv4,
        offset: usize,
        vni: u32,
        mut work: Area,
    ) -> Result<(), Reason> {
        flow::flow(ctx, ip, offset, vni, &mut work.flow)
    }

    #[inline(always)]
    fn flow_from_outside(
        ctx: &TcContext,
        ip: &Ipv4,
        offset: usize,
        vni: u32,
        work: Area,
    ) -> Result<(), Reason> {
        Self::flow(ctx, ip, offset, vni, work)
    }

    #[inline(always)]
    fn outward(
        packet: &Sent<'_, Self>,
        network: &Network,
        mut work: Area,
    ) -> Result<Outward, Reason> {
        let Sent { ctx, link, ip, .. } = packet;
        let work = &mut *work;
        match flow::flow(ctx, ip, ETH_LEN, link.vni, &mut work.flow) {
            Err(_) if is_icmp(ip) => snat::echo_flow(ctx, ip, link.vni, &mut work.flow)?,
            flow => flow?,
        }
        let action = conntrack::find(&work.flow, &mut work.entry);
        // Containers of internal networks send nothing outside.
        let may = network.flags & NETWORK_INTERNAL == 0 && !packet.is_from(ENDPOINT_FLAG_HOST);
        if !may || (action != 0 && action != CONNTRACK_FORWARD) {
            return Ok(Outward::Elsewhere(action));
        }
        let published = if work.flow.part == PART_QUOTED {
            // The error's flow has a backend: the published port does not matter.
            if action == 0 { None } else { Some(Published::default()) }
        } else {
            published::find_on_host(ip, work.flow.key.dport)
        };
        Ok(published.map_or(Outward::Elsewhere(action), Outward::OwnPort))
    }

    #[inline(always)]
    fn is_in_own_subnet(packet: &Sent<'_, Self>, network: &Network) -> bool {
        network.contains(packet.ip.daddr())
    }

    #[inline(always)]
    fn stale_backend(packet: &Sent<'_, Self>) -> Option<Be32> {
        if packet.ip.protocol == PROTO_TCP { Some(packet.ip.daddr()) } else { None }
    }

    #[inline(always)]
    fn reset_stale(ctx: &TcContext) -> Result<bool, Reason> {
        reject::reset(ctx)
    }

    /// The host routes its own packets.
    #[inline(always)]
    fn leave(packet: &Sent<'_, Self>, network: &Network, mut work: Area, action: u8) -> Outcome {
        let Sent { ctx, link, ip, .. } = packet;
        if ip.protocol == PROTO_SCTP {
            return Err(Reason::ServiceProtocol);
        }
        if packet.is_from(ENDPOINT_FLAG_HOST) {
            return Err(Reason::NoWayOut);
        }
        match snat::send(ctx, ip, network, &mut work, action) {
            Err(Reason::TooBig) => {
                let mtu = route::egress_mtu(ctx, Be32::ZERO, ip.daddr())?;
                Self::too_big_from_gateway(ctx, link.vni, mtu, false)?;
                Ok(back_out(ctx, Reason::TooBigAnswered))
            }
            Err(Reason::TtlExceeded) => {
                icmp::time_exceeded(ctx, &Router::gateway(network))?;
                Ok(back_out(ctx, Reason::TtlExceededAnswered))
            }
            sent => sent,
        }
    }

    #[inline(always)]
    fn echo(packet: &Sent<'_, Self>) -> Option<Outcome> {
        let Sent { ctx, ethernet, ip, .. } = packet;
        if is_icmp(ip) { Some(echo::answer(ctx, ethernet, ip)) } else { None }
    }

    #[inline(always)]
    fn translate(ctx: &TcContext, ip: &Ipv4, transport: usize, work: Area) -> Result<(), Reason> {
        nat::translate(ctx, ip, transport, &work)
    }

    #[inline(always)]
    fn undo(ctx: &TcContext, transport: usize, mut work: Area) -> Result<(), Reason> {
        nat::undo(ctx, transport, &mut work)
    }

    #[inline(always)]
    fn local_client(work: Area, vni: u32) -> Result<Endpoint, Reason> {
        let key = EndpointKey { vni, ip: work.entry.daddr };
        let client = lookup(&ENDPOINTS, &key).ok_or(Reason::NoEndpoint)?;
        if client.kind == ENDPOINT_LOCAL { Ok(client) } else { Err(Reason::NoEndpoint) }
    }

    #[inline(always)]
    fn is_inside(ip: &Ipv4, vni: u32, _work: Area) -> bool {
        lookup(&NETWORKS, &vni).is_some_and(|network| network.contains(ip.saddr()))
    }

    #[inline(always)]
    fn is_in_subnet(ip: &Ipv4, network: &Network, _endpoint: &Endpoint) -> Result<bool, Reason> {
        Ok(network.contains(ip.saddr()))
    }

    #[inline(always)]
    fn gateway_mac(ip: &Ipv4, work: Area) -> Result<Mac, Reason> {
        match lookup(&NETWORKS, &work.backend.vni) {
            Some(network) if network.contains(ip.saddr()) => Err(Reason::SpoofedInnerSource),
            Some(network) => Ok(Mac::of_ip(network.gateway)),
            None => Ok(Mac::default()),
        }
    }

    #[inline(always)]
    fn keep(_work: Area) {}

    #[inline(always)]
    fn keep_reverse(_work: Area) {}

    #[inline(always)]
    fn frontend(work: Area) -> Be32 {
        work.flow.key.daddr
    }

    #[inline(always)]
    fn dsr_header(work: Area, _frontend: &Be32, otherwise: Ethernet) -> Ethernet {
        dsr::header(&work, otherwise)
    }

    #[inline(always)]
    fn dsr_frontend(ctx: &TcContext, outer: usize) -> Result<u64, Reason> {
        let ethernet: Ethernet = load(ctx, outer)?;
        Ok(Frontend::bits(&ethernet))
    }

    #[inline(always)]
    fn send_dsr(ctx: &TcContext, ip: &Ipv4, work: Area) -> Outcome {
        dsr::send(ctx, ip, &work)
    }

    #[inline(always)]
    fn route_egress(ctx: &TcContext, work: Area) -> Outcome {
        route::route_egress(ctx, work.entry.saddr, work.entry.daddr)
    }

    #[inline(always)]
    fn egress_mtu(ctx: &TcContext, work: Area) -> Result<u32, Reason> {
        route::egress_mtu(ctx, work.entry.saddr, work.entry.daddr)
    }

    #[inline(always)]
    fn reset(ctx: &TcContext) -> Result<bool, Reason> {
        reject::reset(ctx)
    }

    #[inline(always)]
    fn answer_closed_port(ctx: &TcContext) -> Result<(), Reason> {
        // Calls in sequence, not nested: each shares the stack with the entry point only.
        if reject::reset(ctx)? { Ok(()) } else { icmp::port_unreachable(ctx) }
    }

    #[inline(always)]
    fn too_big_from_gateway(
        ctx: &TcContext,
        vni: u32,
        mtu: u32,
        translated: bool,
    ) -> Result<(), Reason> {
        outcome::unpack(too_big_packed(ctx.skb.skb, vni, mtu, translated)).map(|_| ())
    }

    #[inline(always)]
    fn too_big_from_frontend(
        ctx: &TcContext,
        _frontend: &Be32,
        mtu: u32,
        _work: Area,
    ) -> Result<(), Reason> {
        outcome::unpack(too_big_from_frontend_packed(ctx.skb.skb, mtu)).map(|_| ())
    }

    #[inline(always)]
    fn too_big_to_backend(
        ctx: &TcContext,
        transport: usize,
        mtu: u32,
        work: Area,
    ) -> Result<(), Reason> {
        let frontend = work.entry.saddr;
        Self::undo(ctx, transport, work)?;
        icmp::too_big(ctx, &Router { ip: frontend, mac: Mac::default() }, mtu)
    }

    #[inline(always)]
    fn pop(ctx: &TcContext, ip: &Ipv4, outer: usize, leaves: bool) -> Result<(), Stop> {
        let config = config().ok_or(Reason::NotConfigured)?;
        // Without `decap_flags` an aggregate keeps the mark of a tunnel after decapsulation. A TCP
        // socket ignores it. A UDP socket's segmentation fails because of it (seen on Linux 6.18),
        // and a NIC's might.
        let may_keep_mark = ip.protocol == PROTO_TCP && !leaves;
        if config.decap_flags == 0 && is_gso(ctx) && !may_keep_mark {
            return Err(Stop::ToKernel);
        }
        if outer == INNER6 {
            // As for IPv6 on an IPv4 underlay: the kernel refuses it too late.
            vxlan::leave_aggregate(ctx, ip.protocol, config.decap_flags)?;
            return vxlan6::remove(ctx, ETHERTYPE_IPV4, config.decap_flags);
        }
        vxlan::remove(ctx, config.decap_flags)
    }
}

/// A separate function, to save stack.
#[inline(never)]
fn too_big_packed(skb: *mut __sk_buff, vni: u32, mtu: u32, translated: bool) -> i64 {
    let ctx = TcContext::new(skb);
    outcome::pack(answer_too_big(&ctx, vni, mtu, translated).map(|()| 0))
}

#[inline(always)]
fn answer_too_big(ctx: &TcContext, vni: u32, mtu: u32, translated: bool) -> Result<(), Reason> {
    if translated {
        let work = area()?;
        V4::undo(ctx, usize::from(work.flow.transport), work)?;
    }
    let network = lookup(&NETWORKS, &vni).ok_or(Reason::TooBig)?;
    icmp::too_big(ctx, &Router::gateway(&network), mtu)
}

/// A separate function, to save stack.
#[inline(never)]
fn too_big_from_frontend_packed(skb: *mut __sk_buff, mtu: u32) -> i64 {
    let ctx = TcContext::new(skb);
    outcome::pack(answer_from_frontend(&ctx, mtu).map(|()| 0))
}

#[inline(always)]
fn answer_from_frontend(ctx: &TcContext, mtu: u32) -> Result<(), Reason> {
    let work = area()?;
    let frontend = work.flow.key.daddr;
    V4::undo(ctx, usize::from(work.flow.transport), work)?;
    let ethernet: Ethernet = load(ctx, 0)?;
    icmp::too_big(ctx, &Router { ip: frontend, mac: ethernet.dst }, mtu)
}
