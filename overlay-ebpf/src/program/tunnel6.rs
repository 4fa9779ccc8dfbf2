//! `tunnel_flow6`: IPv6 out of the tunnel that is no endpoint's for another alone: of clients outside whose flow
//! another node has translated, and replies of flows that were translated here. `ipv6::from_tunnel` has
//! checked it and left it as it came. As `underlay` does for IPv4.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        Backend, CONNTRACK_REPLY, ENDPOINT_FLAG_PUBLISHED, ENDPOINT_LOCAL, ENDPOINT_REMOTE,
        Endpoint, IPV6_SIDE, Link6, Network,
    },
    wire::{ETHERTYPE_IPV6, Ethernet},
};

use crate::{
    answer::icmp6,
    forward::{deliver_as, route6},
    maps::{
        BACKENDS, CONNTRACK, LINKS6, NETWORKS, addr6_id, lookup,
        work::{Work, work},
    },
    nat::rewrite6,
    observe::Party,
    outcome::{Outcome, Verdict},
    packet::{
        flow6,
        frame::{ETH_LEN, pull, refuse_vlan_tag},
        ipv6::{find, pop},
    },
    program::{
        container6::to_client,
        underlay::{check_backend, check_peer},
    },
    service::{conntrack, dsr6, reverse, stats},
    tunnel::{fallback, peers, underlay, vxlan},
};

/// Outer headers of either family, Ethernet, IPv6 and TCP.
const HEADERS: u32 = 70 + 74;

/// What `ipv6::from_tunnel` has left in `work.ipv6`.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, HEADERS);
    let (vni, sender, outer) = {
        let work = &work()?.ipv6;
        (work.vni, work.sender, work.outer)
    };
    receiver.vni = vni;
    let reason = match accept(ctx, receiver) {
        Err(reason) => reason,
        outcome => return outcome,
    };
    // What a stranger sends is dropped as that, whatever else is wrong with it.
    // On an IPv6 underlay its number says that it is none.
    if !underlay::is_ipv6()
        && let Err(stranger) = check_peer(sender)
    {
        *receiver = Party::receiver();
        return Err(stranger);
    }
    // Nobody says so after anything else has changed the packet.
    if reason == Reason::TunnelRefused && outer != 0 {
        return fallback::leave(ctx);
    }
    Err(peers::judge(vni, sender, reason))
}

#[inline(always)]
fn accept(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    let work = work()?;
    let (vni, destination) = (work.ipv6.vni, work.ipv6.ip.dst);
    if find(&mut work.ipv6, vni, destination) != ENDPOINT_LOCAL {
        return to_nobody(ctx);
    }
    let endpoint = work.ipv6.endpoint;
    receiver.slot = endpoint.slot;
    let source = work.ipv6.ip.src;
    if find(&mut work.ipv6, vni, source) != ENDPOINT_REMOTE {
        return from_outside(ctx, &endpoint);
    }
    // From a backend: a reply to a client of this node, or on its own behalf.
    let (outer, from) = (work.ipv6.outer as usize, work.ipv6.endpoint.mac);
    if flow6::find(ctx, outer + ETH_LEN, vni) == Ok(true)
        && conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_REPLY
    {
        return reply(ctx);
    }
    pop(ctx, outer, false)?;
    deliver_as(ETHERTYPE_IPV6, ctx, &endpoint, from, Reason::Decapsulated)
}

/// Offset of the transport header once the outer headers are gone.
#[inline(always)]
fn transport(work: &Work) -> usize {
    usize::from(work.flow.transport) - work.ipv6.outer as usize
}

/// From a client outside, whose flow another node has translated: notes the way back, and delivers with the
/// gateway's MAC.
#[inline(always)]
fn from_outside(ctx: &TcContext, endpoint: &Endpoint) -> Outcome {
    let work = work()?;
    let (vni, sender, outer) = (work.ipv6.vni, work.ipv6.sender, work.ipv6.outer as usize);
    check_peer(sender)?;
    refuse_vlan_tag(ctx)?;
    let network: Network = lookup(&NETWORKS, &vni).ok_or(Reason::NoEndpoint)?;
    let link: Link6 = lookup(&LINKS6, &endpoint.ifindex).ok_or(Reason::NoEndpoint)?;
    if work.ipv6.ip.src.is_equal_under(&link.ip, &link.mask) {
        return Err(Reason::SpoofedInnerSource);
    }
    if endpoint.flags & ENDPOINT_FLAG_PUBLISHED == 0 {
        return Err(Reason::NotPublished);
    }
    flow6::read(ctx, outer + ETH_LEN)?;
    if !flow6::name(ctx, vni, flow6::MAY_BE_NEW)? {
        return Err(Reason::ConntrackFull);
    }
    let asked = dsr6::asked(ctx);
    let translate = reverse::note_return(&work.flow, sender, asked, &mut work.entry)?;
    let reply = conntrack::reply_key(&work.flow.key, &work.entry);
    if let Some(reply) = CONNTRACK.get_ptr(&reply) {
        // SAFETY: as in `conntrack::look`.
        let asked = unsafe { (*reply).saddr };
        // The client of a flow that is in use is kept with it, and what it asked, if replies go straight to it.
        addr6_id::keep(work.flow.key.saddr);
        addr6_id::keep(asked);
    }
    pop(ctx, outer, false)?;
    if translate {
        rewrite6::translate(ctx, transport(work))?;
    }
    let from = Mac::of_ip(network.gateway);
    deliver_as(ETHERTYPE_IPV6, ctx, endpoint, from, Reason::Decapsulated)
}

/// A backend's reply for a flow that was translated here: to a client outside, or to a container of this node
/// that asked a port of this host.
#[inline(always)]
fn to_nobody(ctx: &TcContext) -> Outcome {
    let work = work()?;
    let (vni, sender) = (work.ipv6.vni, work.ipv6.sender);
    check_peer(sender)?;
    refuse_vlan_tag(ctx)?;
    if flow6::find(ctx, work.ipv6.outer as usize + ETH_LEN, vni) != Ok(true)
        || conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_REPLY
    {
        return Err(Reason::NoEndpoint);
    }
    check_backend(&work.entry, sender)?;
    reply(ctx)
}

/// Pops the tunnel headers of a reply, translates it back and sends it to the client.
#[inline(always)]
fn reply(ctx: &TcContext) -> Outcome {
    let work = work()?;
    let vni = work.entry.vni & !IPV6_SIDE;
    pop(ctx, work.ipv6.outer as usize, vni == UNDERLAY_VNI)?;
    stats::answered(work, ctx.len());
    rewrite6::translate(ctx, transport(work))?;
    if vni != UNDERLAY_VNI {
        return to_client(ctx, vni, Reason::Decapsulated);
    }
    match route6::route_out(ctx) {
        Err(Reason::TooBig) => tell_backend(ctx),
        sent => sent,
    }
}

/// Tells a backend elsewhere what fits the way to its client outside: in the name of the address that the client
/// asked, as a router on that way would.
#[inline(always)]
fn tell_backend(ctx: &TcContext) -> Outcome {
    let work = work()?;
    let mtu = route6::outside_mtu(ctx)?;
    let backend: Backend = lookup(&BACKENDS, &work.entry.backend).ok_or(Reason::BackendGone)?;
    work.ipv6.router = work.ipv6.new[0];
    work.ipv6.router_mac = Mac::default();
    rewrite6::undo(ctx, transport(work))?;
    icmp6::too_big(ctx, mtu)?;
    let ethertype = Be16::new(ETHERTYPE_IPV6);
    let inner = Ethernet { dst: backend.mac, src: Mac::default(), ethertype };
    let (vni, node): (u32, Be32) = (work.ipv6.vni, backend.node);
    match vxlan::encapsulate(ctx, vni, node, &inner)? {
        Verdict::Done(action, _) => Ok(Verdict::Done(action, Reason::TooBigAnswered)),
        other => Ok(other),
    }
}
