//! `container_flow6`: IPv6 that a container sends to a VIP, as a backend or to one, or to nobody of its network.
//! `from_container` has checked it. As `container` does for IPv4, apart from the way out, which IPv6 has not.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        Backend, CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_RETURN, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_LOCAL, ENDPOINT_SERVICE, Endpoint, IPV6_SIDE, Link, NETWORK_INTERNAL, Network,
        Published, VIA_VIP,
    },
    wire::{ETHERTYPE_IPV6, Ethernet},
};

use crate::{
    answer::{icmp6, reject6},
    forward::{back_out, deliver_as, deliver_backend_as, route6},
    maps::{
        NETWORKS, SERVICES, addr6_id, lookup,
        work::{PART_QUOTED, Work, work},
    },
    nat::rewrite6,
    outcome::Outcome,
    packet::{
        flow6,
        frame::{ETH_LEN, pull},
        ipv6::{self, GONE, NOBODY, find},
    },
    service::{collision, conntrack, dsr, dsr6, published, route, stale, stats},
    tunnel::vxlan,
};

/// Ethernet, IPv6 and TCP.
const HEADERS: u32 = 74;

/// Whose packet it is, and what was kept of it ([`crate::observe::event::keep`]).
///
/// # Errors
/// [`Reason::NotConfigured`].
#[inline(always)]
pub fn sender() -> Result<(Link, i64), Reason> {
    work().map(|work| (work.ipv6.link, work.ipv6.kept))
}

/// What `from_container` has left in `work.ipv6`.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> Outcome {
    pull(ctx, HEADERS);
    let kind = work()?.ipv6.kind;
    if kind == u32::from(ENDPOINT_SERVICE) {
        to_service(ctx)
    } else if kind == u32::from(NOBODY) {
        to_outside(ctx)
    } else if kind == u32::from(GONE) {
        stale::answer6(ctx)
    } else {
        to_endpoint(ctx)
    }
}

/// Whether the sender serves a service.
#[inline(always)]
fn is_backend(link: &Link) -> bool {
    link.flags & u16::from(ENDPOINT_FLAG_BACKEND) != 0
}

/// Where the packet's transport header is.
#[inline(always)]
fn transport(work: &Work) -> usize {
    usize::from(work.flow.transport)
}

/// To a VIP.
#[inline(always)]
fn to_service(ctx: &TcContext) -> Outcome {
    let work = work()?;
    let (number, vni) = (work.ipv6.endpoint.service, work.ipv6.link.vni);
    if !flow6::find(ctx, ETH_LEN, vni)? {
        return Err(Reason::ServiceProtocol);
    }
    // The reply of a backend that reached itself through the VIP.
    if is_backend(&work.ipv6.link)
        && conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_REPLY
    {
        return reply(ctx);
    }
    let port = work.flow.key.dport;
    if let Err(reason) = route::route(work, number, port, (ctx.len(), VIA_VIP)) {
        return reject6::answer(ctx, reason);
    }
    to_backend(ctx)
}

/// To another endpoint of the network, where one of both serves a service.
#[inline(always)]
fn to_endpoint(ctx: &TcContext) -> Outcome {
    let work = work()?;
    let mut translated = false;
    if flow6::find(ctx, ETH_LEN, work.ipv6.link.vni) == Ok(true) {
        match conntrack::find(&work.flow, &mut work.entry) {
            CONNTRACK_REPLY => return reply(ctx),
            CONNTRACK_FORWARD => translated = true,
            _ => translated = collision::open(work)?,
        }
    }
    if !translated {
        return ipv6::to_endpoint(ctx);
    }
    rewrite6::translate(ctx, transport(work))?;
    let Endpoint { kind, mac, node, .. } = work.ipv6.endpoint;
    if kind == ENDPOINT_LOCAL {
        let from = work.ipv6.ethernet.src;
        return deliver_as(ETHERTYPE_IPV6, ctx, &work.ipv6.endpoint, from, Reason::DeliveredLocal);
    }
    tunnel(ctx, (work.ipv6.link.vni, node), mac, true)
}

/// To an address that is nobody's on the network: back on the way that a flow from outside came in, or to a
/// port that this host publishes.
#[inline(always)]
fn to_outside(ctx: &TcContext) -> Outcome {
    let work = work()?;
    let link = work.ipv6.link;
    let network: Network = lookup(&NETWORKS, &link.vni).ok_or(Reason::NoEndpoint)?;
    flow6::read(ctx, ETH_LEN).map_err(|_| Reason::NoWayOut)?;
    if let Some(published) = own_port(ctx, &link, &network)? {
        return to_own_port(ctx, &published);
    }
    if !flow6::name(ctx, link.vni, 0)? {
        return Err(Reason::NoWayOut);
    }
    match conntrack::find(&work.flow, &mut work.entry) {
        CONNTRACK_REPLY => reply(ctx),
        CONNTRACK_RETURN => {
            if dsr::is_straight(work) {
                match dsr6::send(ctx) {
                    // The client may be where only the node that was asked has a way to.
                    Err(Reason::NoRoute) => {}
                    Err(Reason::TooBig) => {
                        let mtu = route6::outside_mtu(ctx)?;
                        return too_big(ctx, mtu, false);
                    }
                    sent => return sent,
                }
            }
            let translated = work.entry.dport != work.flow.key.dport;
            if translated {
                rewrite6::translate(ctx, transport(work))?;
            }
            let to = Mac::of_ip(network.gateway);
            tunnel(ctx, (link.vni, work.entry.node), to, translated)
        }
        _ => Err(Reason::NoWayOut),
    }
}

/// What is published on this host under the port that a container asks of one of its addresses, as in
/// `container`. The flow is named then.
#[inline(always)]
fn own_port(ctx: &TcContext, link: &Link, network: &Network) -> Result<Option<Published>, Reason> {
    let work = work()?;
    if network.flags & NETWORK_INTERNAL != 0 || !published::is_on_host6(&work.ipv6.ip.dst) {
        return Ok(None);
    }
    if work.flow.part == PART_QUOTED {
        // An error about a flow that has a backend: nothing is looked up of what is published. Its sender
        // may be one from outside to the backend, or be on its network.
        for how in [0, flow6::SOURCE_OUTSIDE] {
            if flow6::name(ctx, link.vni, how)?
                && conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_FORWARD
            {
                return Ok(Some(Published::default()));
            }
        }
        return Ok(None);
    }
    // A later fragment says its port only by its flow.
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

/// Names a later fragment's flow by either name of its sender.
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

/// To a port that this host publishes: as from a client outside, under the container's own address.
#[inline(always)]
fn to_own_port(ctx: &TcContext, published: &Published) -> Outcome {
    let work = work()?;
    let (number, target) = (published.service, published.target);
    if let Err(reason) = route::route(work, number, target, (ctx.len(), 0)) {
        return reject6::answer(ctx, reason);
    }
    let vni = work.backend.vni;
    // Networks that overlap: nobody comes from outside with an address from inside.
    let source = work.ipv6.ip.src;
    if vni != work.ipv6.link.vni
        && addr6_id::inside(vni, &source, &mut work.ipv6.key) != addr6_id::NOBODY
    {
        return Err(Reason::SpoofedInnerSource);
    }
    addr6_id::keep_both(work);
    to_backend(ctx)
}

/// Translates a client's packet and sends it to its backend.
#[inline(always)]
fn to_backend(ctx: &TcContext) -> Outcome {
    let work = work()?;
    stats::asked(work, ctx.len());
    rewrite6::translate(ctx, transport(work))?;
    let Backend { vni, node, mac, .. } = work.backend;
    if node == Be32::ZERO {
        return deliver_backend_as(ETHERTYPE_IPV6, ctx, &work.backend, work.ipv6.ethernet.src);
    }
    tunnel(ctx, (vni, node), mac, true)
}

/// Into the tunnel on a network to a node.
#[inline(always)]
fn tunnel(ctx: &TcContext, (vni, node): (u32, Be32), to: Mac, translated: bool) -> Outcome {
    let inner = Ethernet { dst: to, ..work()?.ipv6.ethernet };
    match vxlan::encapsulate(ctx, vni, node, &inner) {
        Err(Reason::TooBig) => {
            let mtu = vxlan::inner_mtu(ctx, node)?;
            too_big(ctx, mtu, translated)
        }
        sent => sent,
    }
}

/// Answers the container, whose packet a path of `mtu` bytes does not take. `translated` says that it was
/// rewritten as the work area has it.
#[inline(always)]
fn too_big(ctx: &TcContext, mtu: u32, translated: bool) -> Outcome {
    if translated {
        rewrite6::undo(ctx, transport(work()?))?;
    }
    icmp6::from_gateway(ctx)?;
    icmp6::too_big(ctx, mtu)?;
    Ok(back_out(ctx, Reason::TooBigAnswered))
}

/// Translates a backend's reply back and sends it to the client: outside, or an endpoint of this node.
#[inline(always)]
fn reply(ctx: &TcContext) -> Outcome {
    let work = work()?;
    stats::answered(work, ctx.len());
    rewrite6::translate(ctx, transport(work))?;
    let vni = work.entry.vni & !IPV6_SIDE;
    if vni == UNDERLAY_VNI {
        return match route6::route_out(ctx) {
            Err(Reason::TooBig) => {
                let mtu = route6::outside_mtu(ctx)?;
                too_big(ctx, mtu, true)
            }
            sent => sent,
        };
    }
    to_client(ctx, vni, Reason::DeliveredLocal)
}

/// Puts a reply into the client on this node, whose address it has.
///
/// # Errors
/// [`Reason::NoEndpoint`] when it is no more.
#[inline(always)]
pub fn to_client(ctx: &TcContext, vni: u32, reason: Reason) -> Outcome {
    let work = work()?;
    let to = work.ipv6.new[1];
    if find(&mut work.ipv6, vni, to) != ENDPOINT_LOCAL {
        return Err(Reason::NoEndpoint);
    }
    let from = Mac::of_ip(work.entry.saddr);
    deliver_as(ETHERTYPE_IPV6, ctx, &work.ipv6.endpoint, from, reason)
}
