//! `from_container`: packets that an endpoint sends. The program checks their sender, then
//! delivers, tunnels, translates or answers them.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    maps::{
        ENDPOINT_FLAG_HOST, ENDPOINT_GATEWAY, ENDPOINT_LOCAL, ENDPOINT_REMOTE, ENDPOINT_SERVICE,
        EndpointKey, Link,
    },
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4},
};

use crate::{
    answer::{arp, echo},
    family::{Sent, V4},
    maps::{cache, work::area},
    outcome::Outcome,
    packet::{
        frame::{ETH_LEN, ifindex, is_gso, load, pull, reject_vlan_tag},
        ipv4::{check_ipv4, is_group_address, is_icmp},
    },
    service::{published, route},
    tunnel::head_end,
    walk::{container, container6, reject},
};

/// Bytes of headers that are read directly: Ethernet, IPv4 and TCP without options.
const HEADERS: u32 = 54;

/// The interface that the packet arrived on.
///
/// # Errors
/// [`Reason::UnknownLink`].
#[inline(always)]
pub fn sender(ctx: &TcContext) -> Result<Link, Reason> {
    cache::link(ifindex(ctx)).ok_or(Reason::UnknownLink)
}

/// Handles a packet of the endpoint behind `link`. `kept` is the result of
/// [`crate::observe::event::keep`].
#[inline(always)]
pub fn receive(ctx: &TcContext, link: Link, kept: i64) -> Outcome {
    pull(ctx, HEADERS);
    let ethernet: Ethernet = load(ctx, 0)?;
    if ethernet.src != link.mac {
        return Err(Reason::SpoofedMac);
    }
    match ethernet.ethertype.get() {
        ETHERTYPE_IPV4 => ipv4(ctx, link, ethernet),
        ETHERTYPE_IPV6 => container6::receive(ctx, link, ethernet, kept),
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
    let packet = Sent::<V4> { ctx, link, ethernet, ip };
    let key = EndpointKey { vni: link.vni, ip: ip.daddr() };
    match cache::endpoint(&key) {
        Some(endpoint) => match endpoint.kind {
            ENDPOINT_LOCAL | ENDPOINT_REMOTE => container::to_endpoint(&packet, &endpoint),
            ENDPOINT_SERVICE => container::to_service(&packet, endpoint.service),
            ENDPOINT_GATEWAY => to_gateway(&packet),
            _ => Err(Reason::NoEndpoint),
        },
        None => container::to_outside(&packet),
    }
}

/// Handles a packet to the gateway: ping from every endpoint, published ports from the host itself.
#[inline(always)]
fn to_gateway(packet: &Sent<'_, V4>) -> Outcome {
    reject_vlan_tag(packet.ctx)?;
    if is_icmp(&packet.ip) {
        return echo::answer(packet.ctx, &packet.ethernet, &packet.ip);
    }
    if !packet.is_from(ENDPOINT_FLAG_HOST) {
        return Err(Reason::GatewayPort);
    }
    let mut work = area()?;
    packet.flow(work)?;
    let published =
        published::find(work.flow.key.proto, work.flow.key.dport).ok_or(Reason::GatewayPort)?;
    let (number, target) = (published.service, published.target);
    if let Err(reason) = route::route(&mut work, number, target, (packet.ctx.len(), 0)) {
        return reject::answer::<V4>(packet.ctx, work, reason);
    }
    container::to_backend(packet, work)
}
