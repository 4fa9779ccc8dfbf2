//! Packets from an endpoint: to a VIP, to another endpoint, to a published port, or out of its
//! network.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_REVERSE, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_LOCAL, Endpoint, Published, VIA_VIP, VNI_FLAG_IPV6,
    },
    wire::Ethernet,
};

use crate::{
    family::{Family, Outward, Sent},
    forward::deliver::{back_out, deliver_as, deliver_backend_as},
    maps::{
        NETWORKS, lookup,
        work::{Area, area},
    },
    outcome::Outcome,
    packet::frame::{has_vlan_tag, reject_vlan_tag},
    service::{collision, conntrack, dsr, route, stats},
    tunnel::encap,
    walk::reject,
};

/// Offset of the transport header of the packet in the work area.
#[inline(always)]
fn transport(work: Area) -> usize {
    usize::from(work.flow.transport)
}

/// Looks up the entry of the work area's flow and leaves it there. Returns its action; 0 without an
/// entry.
#[inline(always)]
fn tracked(mut work: Area) -> u8 {
    let work = &mut *work;
    conntrack::find(&work.flow, &mut work.entry)
}

/// Handles a packet to a VIP, of the service with this number.
#[inline(always)]
pub fn to_service<F: Family>(packet: &Sent<'_, F>, number: u32) -> Outcome {
    reject_vlan_tag(packet.ctx)?;
    let mut work = area()?;
    if let Err(reason) = packet.flow(work) {
        return F::echo(packet).unwrap_or(Err(reason));
    }
    // The reply of a backend that sent to itself through the VIP.
    if packet.is_from(ENDPOINT_FLAG_BACKEND) && tracked(work) == CONNTRACK_REPLY {
        return reply(packet, work);
    }
    let port = work.flow.key.dport;
    if let Err(reason) = route::route(&mut work, number, port, (packet.ctx.len(), VIA_VIP)) {
        return reject::answer::<F>(packet.ctx, work, reason);
    }
    to_backend(packet, work)
}

/// Handles a packet to another endpoint of the network. If the sender is a backend, the packet may
/// be the reply of a flow that this node translated. If the receiver is a backend, the tuple of its
/// replies may collide with that of such replies.
#[inline(always)]
pub fn to_endpoint<F: Family>(packet: &Sent<'_, F>, endpoint: &Endpoint) -> Outcome {
    let mut translated = false;
    let is_with_backend =
        packet.is_from(ENDPOINT_FLAG_BACKEND) || endpoint.flags & ENDPOINT_FLAG_BACKEND != 0;
    // VLAN tags pass between endpoints and have no meaning elsewhere, so tagged flows are never
    // translated.
    if is_with_backend && !has_vlan_tag(packet.ctx) {
        let work = area()?;
        if packet.flow(work).is_ok() {
            match tracked(work) {
                CONNTRACK_REPLY => return reply(packet, work),
                CONNTRACK_FORWARD => translated = true,
                _ => translated = collision::open(&work)?,
            }
            if translated {
                F::translate(packet.ctx, &packet.ip, transport(work), work)?;
            }
        }
    }
    pass_on(packet, endpoint, translated)
}

/// Delivers a packet to an endpoint of its network, on this node or another one. `translated` says
/// that the packet was rewritten as in the work area.
#[inline(always)]
pub fn pass_on<F: Family>(packet: &Sent<'_, F>, endpoint: &Endpoint, translated: bool) -> Outcome {
    let Sent { ctx, link, ethernet, .. } = packet;
    if endpoint.kind == ENDPOINT_LOCAL {
        return deliver_as(F::ETHERTYPE, ctx, endpoint, ethernet.src, Reason::DeliveredLocal);
    }
    tunnel(packet, (link.vni, endpoint.node), endpoint.mac, translated)
}

/// Handles a packet to an address that no endpoint of the network has: a reply of a flow from
/// outside, a packet to a port that this host publishes, or a flow to the outside.
#[inline(always)]
pub fn to_outside<F: Family>(packet: &Sent<'_, F>) -> Outcome {
    reject_vlan_tag(packet.ctx)?;
    let network = lookup(&NETWORKS, &packet.link.vni).ok_or(Reason::NoEndpoint)?;
    if F::is_in_own_subnet(packet, &network) {
        return reject::stale(packet);
    }
    let work = area()?;
    let action = match F::outward(packet, &network, work)? {
        Outward::OwnPort(published) => return to_own_port(packet, work, &published),
        Outward::Elsewhere(action) => action,
    };
    match action {
        CONNTRACK_REPLY => reply(packet, work),
        CONNTRACK_REVERSE => to_ingress_node(packet, network.gateway, work),
        action => F::leave(packet, &network, work, action),
    }
}

/// Sends a reply to a client outside of a flow through another node: to the ingress node, or
/// directly to the client (DSR).
#[inline(always)]
fn to_ingress_node<F: Family>(packet: &Sent<'_, F>, gateway: Be32, work: Area) -> Outcome {
    if dsr::is_dsr_reply(&work) {
        match F::send_dsr(packet.ctx, &packet.ip, work) {
            // Perhaps only the ingress node has a route to the client.
            Err(Reason::NoRoute) => {}
            sent => return or_too_big(packet, work, sent, false),
        }
    }
    let translated = work.entry.dport != work.flow.key.dport;
    if translated {
        F::translate(packet.ctx, &packet.ip, transport(work), work)?;
    }
    tunnel(packet, (packet.link.vni, work.entry.node), Mac::of_ip(gateway), translated)
}

/// Handles a packet of a container to a port that this host publishes. The container counts as a
/// client outside, under its own address.
#[inline(always)]
fn to_own_port<F: Family>(packet: &Sent<'_, F>, mut work: Area, published: &Published) -> Outcome {
    let (number, target) = (published.service, published.target);
    if let Err(reason) = route::route(&mut work, number, target, (packet.ctx.len(), 0)) {
        return reject::answer::<F>(packet.ctx, work, reason);
    }
    let vni = work.backend.vni;
    // Overlapping networks: no packet comes from outside with an address from inside.
    if vni != packet.link.vni && F::is_inside(&packet.ip, vni, work) {
        return Err(Reason::SpoofedInnerSource);
    }
    F::keep(work);
    to_backend(packet, work)
}

/// Translates a client's packet and sends it to its backend.
#[inline(always)]
pub fn to_backend<F: Family>(packet: &Sent<'_, F>, work: Area) -> Outcome {
    let Sent { ctx, ethernet, ip, .. } = packet;
    stats::request(&work, ctx.len());
    F::translate(ctx, ip, transport(work), work)?;
    let backend = &work.backend;
    if backend.node == Be32::ZERO {
        return deliver_backend_as(F::ETHERTYPE, ctx, backend, ethernet.src);
    }
    tunnel(packet, (backend.vni, backend.node), backend.mac, true)
}

/// Sends a packet through the tunnel to a node, on a network and for the MAC `to`.
#[inline(always)]
fn tunnel<F: Family>(
    packet: &Sent<'_, F>,
    (vni, node): (u32, Be32),
    to: Mac,
    translated: bool,
) -> Outcome {
    let inner = Ethernet { dst: to, ..packet.ethernet };
    match encap::encapsulate(packet.ctx, vni, node, &inner) {
        Err(Reason::TooBig) => {
            let mtu = encap::inner_mtu(packet.ctx, node)?;
            too_big::<F>(packet.ctx, packet.link.vni, mtu, translated)
        }
        sent => sent,
    }
}

/// Answers a packet of network `vni` that does not fit a path of `mtu` bytes, from the gateway.
#[inline(always)]
pub fn too_big<F: Family>(ctx: &TcContext, vni: u32, mtu: u32, translated: bool) -> Outcome {
    F::too_big_from_gateway(ctx, vni, mtu, translated)?;
    Ok(back_out(ctx, Reason::TooBigAnswered))
}

/// The outcome of a reply to a client outside: if it is too big, the backend gets an ICMP error.
/// `translated` as for [`too_big`].
#[inline(always)]
fn or_too_big<F: Family>(
    packet: &Sent<'_, F>,
    work: Area,
    sent: Outcome,
    translated: bool,
) -> Outcome {
    match sent {
        Err(Reason::TooBig) => {
            let mtu = F::egress_mtu(packet.ctx, work)?;
            too_big::<F>(packet.ctx, packet.link.vni, mtu, translated)
        }
        sent => sent,
    }
}

/// Translates a backend's reply back and sends it to the client, outside or an endpoint of this
/// node.
#[inline(always)]
fn reply<F: Family>(packet: &Sent<'_, F>, work: Area) -> Outcome {
    let Sent { ctx, ip, .. } = packet;
    stats::reply(&work, ctx.len());
    F::translate(ctx, ip, transport(work), work)?;
    let vni = work.entry.vni & !VNI_FLAG_IPV6;
    if vni == UNDERLAY_VNI {
        let sent = F::route_egress(ctx, work);
        return or_too_big(packet, work, sent, true);
    }
    let client = F::local_client(work, vni)?;
    let from = Mac::of_ip(work.entry.saddr);
    deliver_as(F::ETHERTYPE, ctx, &client, from, Reason::DeliveredLocal)
}
