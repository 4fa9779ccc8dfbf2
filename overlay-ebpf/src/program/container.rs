//! `from_container`: what an endpoint sends. Checked against what it may send, then delivered here,
//! tunnelled, translated or answered.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_RETURN, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_FLAG_HOST, ENDPOINT_GATEWAY, ENDPOINT_LOCAL, ENDPOINT_REMOTE, ENDPOINT_SERVICE,
        Endpoint, EndpointKey, Link, NETWORK_INTERNAL, Network, Published, VIA_VIP,
    },
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, PROTO_SCTP},
};

use crate::{
    answer::{
        arp, echo,
        icmp::{self, Router},
        reject,
    },
    forward::{back_out, deliver, deliver_backend, outside_mtu, route_out},
    maps::{
        ENDPOINTS, NETWORKS, cache, lookup,
        work::{Flow, PART_QUOTED, Work, work},
    },
    nat,
    outcome::{self, Outcome},
    packet::{
        flow::flow,
        frame::{ETH_LEN, has_vlan_tag, ifindex, is_gso, load, pull, refuse_vlan_tag},
        ipv4::{check_ipv4, is_group_address, is_icmp},
        ipv6,
    },
    service::{collision, conntrack, dsr, published, route, snat, stale, stats},
    tunnel::{head_end, vxlan},
};

/// Headers that are read directly: Ethernet, IPv4 and TCP without options.
const HEADERS: u32 = 54;

/// A packet from an endpoint, after the checks that hold for all of them.
struct Packet<'a> {
    ctx: &'a TcContext,
    link: Link,
    ethernet: Ethernet,
    ip: Ipv4,
}

impl Packet<'_> {
    /// Whether the endpoint has any of `flags` (`ENDPOINT_FLAG_*`).
    #[inline(always)]
    fn is_from(&self, flags: u8) -> bool {
        self.link.flags & u16::from(flags) != 0
    }

    /// Fills `work.flow`.
    #[inline(always)]
    fn flow(&self, work: &mut Work) -> Result<(), Reason> {
        flow(self.ctx, &self.ip, ETH_LEN, self.link.vni, &mut work.flow)
    }

    /// The action of the flow's entry, which is in `work.entry` then; 0 without one.
    #[inline(always)]
    fn tracked(&self, work: &mut Work) -> u8 {
        conntrack::find(&work.flow, &mut work.entry)
    }
}

/// Whose interface the packet came in by.
///
/// # Errors
/// [`Reason::UnknownLink`].
#[inline(always)]
pub fn sender(ctx: &TcContext) -> Result<Link, Reason> {
    cache::link(ifindex(ctx)).ok_or(Reason::UnknownLink)
}

/// What the endpoint behind `link` sends. `kept` is what [`crate::observe::event::keep`] returned.
#[inline(always)]
pub fn receive(ctx: &TcContext, link: Link, kept: i64) -> Outcome {
    pull(ctx, HEADERS);
    let ethernet: Ethernet = load(ctx, 0)?;
    if ethernet.src != link.mac {
        return Err(Reason::SpoofedMac);
    }
    match ethernet.ethertype.get() {
        ETHERTYPE_IPV4 => ipv4(ctx, link, ethernet),
        ETHERTYPE_IPV6 => ipv6::from_container(ctx, link, ethernet, kept),
        ETHERTYPE_ARP => arp::answer(ctx, &link),
        _ => Err(Reason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, link: Link, ethernet: Ethernet) -> Outcome {
    let ip: Ipv4 = load(ctx, ETH_LEN)?;
    check_ipv4(&ip, ctx.len() - ETH_LEN as u32, is_gso(ctx))?;
    if ip.saddr() != link.ip {
        return Err(Reason::SpoofedSource);
    }
    if is_group_address(&ip) || ethernet.dst.is_group() {
        return head_end::send(ctx, &link, &ethernet, &ip);
    }
    let packet = Packet { ctx, link, ethernet, ip };
    let key = EndpointKey { vni: link.vni, ip: ip.daddr() };
    match cache::endpoint(&key) {
        Some(endpoint) => match endpoint.kind {
            ENDPOINT_LOCAL | ENDPOINT_REMOTE => to_endpoint(&packet, &endpoint),
            ENDPOINT_SERVICE => to_service(&packet, endpoint.service),
            ENDPOINT_GATEWAY => to_gateway(&packet),
            _ => Err(Reason::NoEndpoint),
        },
        None => to_outside(&packet),
    }
}

/// To another endpoint of the network. If the sender serves a service, this may be the reply of a
/// flow that was translated on this node; if the receiver does, its replies may look like those of one.
#[inline(always)]
fn to_endpoint(packet: &Packet<'_>, endpoint: &Endpoint) -> Outcome {
    let mut translated = false;
    let is_with_backend =
        packet.is_from(ENDPOINT_FLAG_BACKEND) || endpoint.flags & ENDPOINT_FLAG_BACKEND != 0;
    // Tags cross between endpoints and mean nothing elsewhere, so tagged flows are never translated.
    if is_with_backend && !has_vlan_tag(packet.ctx) {
        let work = work()?;
        if packet.flow(work).is_ok() {
            match packet.tracked(work) {
                CONNTRACK_REPLY => return reply(packet, work),
                CONNTRACK_FORWARD => translated = true,
                _ => translated = collision::open(work)?,
            }
            if translated {
                nat::translate(packet.ctx, &packet.ip, usize::from(work.flow.transport), work)?;
            }
        }
    }
    let Packet { ctx, link, ethernet, .. } = packet;
    if endpoint.kind == ENDPOINT_LOCAL {
        return deliver(ctx, endpoint, ethernet.src, Reason::DeliveredLocal);
    }
    let inner = Ethernet { dst: endpoint.mac, ..*ethernet };
    tunnel(packet, (link.vni, endpoint.node), &inner, translated)
}

/// Into the tunnel on a network to a node.
#[inline(always)]
fn tunnel(
    packet: &Packet<'_>,
    (vni, node): (u32, Be32),
    inner: &Ethernet,
    translated: bool,
) -> Outcome {
    match vxlan::encapsulate(packet.ctx, vni, node, inner) {
        Err(Reason::TooBig) => {
            let mtu = vxlan::inner_mtu(packet.ctx, node)?;
            too_big(packet.ctx, packet.link.vni, mtu, translated)
        }
        sent => sent,
    }
}

/// Answers a packet of network `vni` that a path of `mtu` bytes does not take, from the gateway.
/// `translated` says that the packet was rewritten as the work area has it.
#[inline(always)]
fn too_big(ctx: &TcContext, vni: u32, mtu: u32, translated: bool) -> Outcome {
    outcome::unpack(too_big_packed(ctx.skb.skb, vni, mtu, translated))?;
    Ok(back_out(ctx, Reason::TooBigAnswered))
}

#[inline(never)]
fn too_big_packed(skb: *mut __sk_buff, vni: u32, mtu: u32, translated: bool) -> i64 {
    let ctx = TcContext::new(skb);
    outcome::pack(answer_too_big(&ctx, vni, mtu, translated).map(|()| 0))
}

#[inline(always)]
fn answer_too_big(ctx: &TcContext, vni: u32, mtu: u32, translated: bool) -> Result<(), Reason> {
    if translated {
        let work = work()?;
        nat::undo(ctx, usize::from(work.flow.transport), work)?;
    }
    let network = lookup(&NETWORKS, &vni).ok_or(Reason::TooBig)?;
    icmp::too_big(ctx, &Router::gateway(&network), mtu)
}

/// To a VIP.
#[inline(always)]
fn to_service(packet: &Packet<'_>, number: u32) -> Outcome {
    refuse_vlan_tag(packet.ctx)?;
    let work = work()?;
    match packet.flow(work) {
        Err(_) if is_icmp(&packet.ip) => {
            return echo::answer(packet.ctx, &packet.ethernet, &packet.ip);
        }
        flow => flow?,
    }
    // The reply of a backend that reached itself through the VIP.
    if packet.is_from(ENDPOINT_FLAG_BACKEND) && packet.tracked(work) == CONNTRACK_REPLY {
        return reply(packet, work);
    }
    if let Err(reason) =
        route::route(work, number, work.flow.key.dport, (packet.ctx.len(), VIA_VIP))
    {
        return reject::answer(packet.ctx, work, reason);
    }
    to_backend(packet, work)
}

/// To the gateway: ping for everybody, published ports for the host itself.
#[inline(always)]
fn to_gateway(packet: &Packet<'_>) -> Outcome {
    refuse_vlan_tag(packet.ctx)?;
    if is_icmp(&packet.ip) {
        return echo::answer(packet.ctx, &packet.ethernet, &packet.ip);
    }
    if !packet.is_from(ENDPOINT_FLAG_HOST) {
        return Err(Reason::GatewayPort);
    }
    let work = work()?;
    packet.flow(work)?;
    let published =
        published::find(work.flow.key.proto, work.flow.key.dport).ok_or(Reason::GatewayPort)?;
    if let Err(reason) =
        route::route(work, published.service, published.target, (packet.ctx.len(), 0))
    {
        return reject::answer(packet.ctx, work, reason);
    }
    to_backend(packet, work)
}

/// Translates a client's packet and sends it to its backend.
#[inline(always)]
fn to_backend(packet: &Packet<'_>, work: &Work) -> Outcome {
    let Packet { ctx, ethernet, ip, .. } = packet;
    stats::asked(work, ctx.len());
    nat::translate(ctx, ip, usize::from(work.flow.transport), work)?;
    let backend = &work.backend;
    if backend.node == Be32::ZERO {
        return deliver_backend(ctx, backend, ethernet.src);
    }
    let inner = Ethernet { dst: backend.mac, ..*ethernet };
    tunnel(packet, (backend.vni, backend.node), &inner, true)
}

/// To an address that is nobody's on the network: back on the way that a flow from outside came in,
/// or out on a new one.
#[inline(always)]
fn to_outside(packet: &Packet<'_>) -> Outcome {
    refuse_vlan_tag(packet.ctx)?;
    let Packet { ctx, link, ethernet, ip } = packet;
    let network = lookup(&NETWORKS, &link.vni).ok_or(Reason::NoEndpoint)?;
    if network.contains(ip.daddr()) {
        return stale::answer(ctx, link.vni, ip);
    }
    let work = work()?;
    match packet.flow(work) {
        Err(_) if is_icmp(ip) => snat::echo_flow(ctx, ip, link.vni, &mut work.flow)?,
        flow => flow?,
    }
    let action = packet.tracked(work);
    if let Some(published) = own_port(packet, &network, &work.flow, action) {
        return to_own_port(packet, work, &published);
    }
    match action {
        CONNTRACK_REPLY => reply(packet, work),
        CONNTRACK_RETURN => {
            if dsr::is_straight(work) {
                match dsr::send(ctx, ip, work) {
                    // The client may be where only the node that was asked has a way to.
                    Err(Reason::NoRoute) => {}
                    sent => return or_told(packet, work, sent, false),
                }
            }
            let translated = work.entry.dport != work.flow.key.dport;
            if translated {
                nat::translate(ctx, ip, usize::from(work.flow.transport), work)?;
            }
            let inner = Ethernet { dst: Mac::of_ip(network.gateway), ..*ethernet };
            tunnel(packet, (link.vni, work.entry.node), &inner, translated)
        }
        _ if ip.protocol == PROTO_SCTP => Err(Reason::ServiceProtocol),
        action => leave(packet, &network, work, action),
    }
}

/// What is published on this host under the port that a container asks of one of its addresses. Containers
/// of internal networks ask nobody outside.
#[inline(always)]
fn own_port(packet: &Packet<'_>, network: &Network, flow: &Flow, action: u8) -> Option<Published> {
    let may = network.flags & NETWORK_INTERNAL == 0 && !packet.is_from(ENDPOINT_FLAG_HOST);
    if !may || (action != 0 && action != CONNTRACK_FORWARD) {
        return None;
    }
    if flow.part == PART_QUOTED {
        // An error about a flow that has a backend: nothing is looked up of what is published.
        return if action == 0 { None } else { Some(Published::default()) };
    }
    published::find_on_host(&packet.ip, flow.key.dport)
}

/// To a port that this host publishes, from a container of any network: as from a client outside, under
/// the container's own address.
#[inline(always)]
fn to_own_port(packet: &Packet<'_>, work: &mut Work, published: &Published) -> Outcome {
    let Packet { ctx, link, ip, .. } = packet;
    if let Err(reason) = route::route(work, published.service, published.target, (ctx.len(), 0)) {
        return reject::answer(ctx, work, reason);
    }
    let vni = work.backend.vni;
    // Networks that overlap: nobody comes from outside with an address from inside.
    if vni != link.vni && lookup(&NETWORKS, &vni).is_some_and(|n| n.contains(ip.saddr())) {
        return Err(Reason::SpoofedInnerSource);
    }
    to_backend(packet, work)
}

/// Leaves the cluster's networks. The host itself has ways of its own.
#[inline(always)]
fn leave(packet: &Packet<'_>, network: &Network, work: &mut Work, action: u8) -> Outcome {
    if packet.is_from(ENDPOINT_FLAG_HOST) {
        return Err(Reason::NoWayOut);
    }
    let Packet { ctx, link, ip, .. } = packet;
    match snat::send(ctx, ip, network, work, action) {
        Err(Reason::TooBig) => {
            let mtu = outside_mtu(ctx, Be32::ZERO, ip.daddr())?;
            too_big(ctx, link.vni, mtu, false)
        }
        Err(Reason::TtlExceeded) => {
            icmp::time_exceeded(ctx, &Router::gateway(network))?;
            Ok(back_out(ctx, Reason::TtlExceededAnswered))
        }
        sent => sent,
    }
}

/// What became of a reply to a client outside, which its backend is told when it is too big. `translated` as for
/// [`too_big`].
#[inline(always)]
fn or_told(packet: &Packet<'_>, work: &Work, sent: Outcome, translated: bool) -> Outcome {
    match sent {
        Err(Reason::TooBig) => {
            let mtu = outside_mtu(packet.ctx, work.entry.saddr, work.entry.daddr)?;
            too_big(packet.ctx, packet.link.vni, mtu, translated)
        }
        sent => sent,
    }
}

/// Translates a backend's reply back and sends it to the client: outside, or an endpoint of this
/// node.
#[inline(always)]
fn reply(packet: &Packet<'_>, work: &Work) -> Outcome {
    let Packet { ctx, ip, .. } = packet;
    stats::answered(work, ctx.len());
    nat::translate(ctx, ip, usize::from(work.flow.transport), work)?;
    let entry = &work.entry;
    if entry.vni == UNDERLAY_VNI {
        let sent = route_out(ctx, entry.saddr, entry.daddr);
        return or_told(packet, work, sent, true);
    }
    let key = EndpointKey { vni: entry.vni, ip: entry.daddr };
    let client = lookup(&ENDPOINTS, &key).ok_or(Reason::NoEndpoint)?;
    if client.kind != ENDPOINT_LOCAL {
        return Err(Reason::NoEndpoint);
    }
    deliver(ctx, &client, Mac::of_ip(entry.saddr), Reason::DeliveredLocal)
}
