//! `host_flow6`: IPv6 to an address of the host: published ports, and errors about their flows. As `underlay`
//! does for IPv4. What it knows nothing of is the host's.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Be32, Mac, Reason,
    maps::{Backend, CONNTRACK_FORWARD, Link6, Network, Published},
    wire::{ETHERTYPE_IPV6, Ethernet},
};

use crate::{
    answer::{icmp6, reject6},
    forward::{back_out, deliver_backend_as},
    maps::{
        LINKS6, NETWORKS, addr6_id, lookup,
        work::{PART_QUOTED, PART_WHOLE, work},
    },
    nat::rewrite6,
    outcome::{Outcome, Verdict},
    packet::{
        flow6,
        frame::{ETH_LEN, has_vlan_tag, is_gso, load, load_into, pull},
        ipv6::check_ipv6,
    },
    service::{conntrack, dsr, published, route, stats},
    tunnel::vxlan,
};

/// Ethernet, IPv6 and TCP.
const HEADERS: u32 = 74;

/// What the host receives.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> Outcome {
    pull(ctx, HEADERS);
    let work = work()?;
    // The VLAN's own interface sees it again, without the tag.
    if has_vlan_tag(ctx)
        || load_into(ctx, ETH_LEN, &mut work.ipv6.ip).is_err()
        || !published::is_on_host6(&work.ipv6.ip.dst)
    {
        return Ok(Verdict::Pass);
    }
    let read = flow6::read(ctx, ETH_LEN);
    if read.is_ok() && work.flow.part != PART_WHOLE {
        return of_known_flow(ctx);
    }
    let (proto, port) = (work.flow.key.proto, work.flow.key.dport);
    let Some(published) = published::find_on_host6(&work.ipv6.ip.dst, proto, port) else {
        return Ok(Verdict::Pass);
    };
    read?;
    check(ctx)?;
    if !flow6::name(ctx, flow6::HOST, flow6::MAY_BE_NEW)? {
        return Err(Reason::ConntrackFull);
    }
    to_published(ctx, &published)
}

/// Later fragments, and ICMPv6 errors: nothing but a flow that there is already says that they are not the
/// host's.
#[inline(always)]
fn of_known_flow(ctx: &TcContext) -> Outcome {
    let work = work()?;
    if flow6::name(ctx, flow6::HOST, 0) != Ok(true) {
        return Ok(Verdict::Pass);
    }
    if work.flow.part == PART_QUOTED {
        return if conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_FORWARD {
            // Its flow has a backend, or had one: nothing is looked up of what is published.
            check(ctx)?;
            to_published(ctx, &Published::default())
        } else {
            Ok(Verdict::Pass)
        };
    }
    let (proto, port) = (work.flow.key.proto, work.flow.key.dport);
    match published::find_on_host6(&work.ipv6.ip.dst, proto, port) {
        Some(published) => {
            check(ctx)?;
            to_published(ctx, &published)
        }
        None => Ok(Verdict::Pass),
    }
}

/// Whether the header is possible and the frame as long as it says.
///
/// # Errors
/// Those of [`check_ipv6`].
#[inline(always)]
fn check(ctx: &TcContext) -> Result<(), Reason> {
    check_ipv6(&work()?.ipv6.ip, ctx.len() - ETH_LEN as u32, is_gso(ctx))
}

/// A client outside asked a port of the host.
#[inline(always)]
fn to_published(ctx: &TcContext, published: &Published) -> Outcome {
    let work = work()?;
    let (number, target) = (published.service, published.target);
    if let Err(reason) = route::route(work, number, target, (ctx.len(), 0)) {
        return reject6::answer(ctx, reason);
    }
    let Backend { vni, node, mac, ifindex, .. } = work.backend;
    let gateway = gateway_mac(vni, ifindex)?;
    addr6_id::keep_both(work);
    stats::asked(work, ctx.len());
    let transport = usize::from(work.flow.transport);
    let asked = work.ipv6.ip.dst;
    rewrite6::translate(ctx, transport)?;
    if node == Be32::ZERO {
        return deliver_backend_as(ETHERTYPE_IPV6, ctx, &work.backend, gateway);
    }
    let inner = Ethernet { dst: mac, src: gateway, ethertype: Be16::new(ETHERTYPE_IPV6) };
    let inner = dsr::header6(work, &asked, inner);
    match vxlan::encapsulate(ctx, vni, node, &inner) {
        Err(Reason::TooBig) => {
            let mtu = vxlan::inner_mtu(ctx, node)?;
            rewrite6::undo(ctx, transport)?;
            // From the address that was asked.
            work.ipv6.router = asked;
            work.ipv6.router_mac = load::<Ethernet>(ctx, 0)?.dst;
            icmp6::too_big(ctx, mtu)?;
            Ok(back_out(ctx, Reason::TooBigAnswered))
        }
        sent => sent,
    }
}

/// The MAC that a client's packets come from: the gateway's, where the network is known here. Where it is
/// not, the backend is elsewhere and its node makes the same check and has the MAC. `ifindex` is the backend's
/// interface, if it is here.
///
/// # Errors
/// [`Reason::SpoofedInnerSource`] when a packet from outside says it is from inside.
#[inline(always)]
pub fn gateway_mac(vni: u32, ifindex: u32) -> Result<Mac, Reason> {
    let work = &mut work()?.ipv6;
    let source = work.ip.src;
    let link: Option<Link6> = lookup(&LINKS6, &ifindex);
    if link.is_some_and(|link| source.is_equal_under(&link.ip, &link.mask))
        || addr6_id::inside(vni, &source, &mut work.key) != addr6_id::NOBODY
    {
        return Err(Reason::SpoofedInnerSource);
    }
    let network: Option<Network> = lookup(&NETWORKS, &vni);
    Ok(network.map_or(Mac::default(), |network| Mac::of_ip(network.gateway)))
}
