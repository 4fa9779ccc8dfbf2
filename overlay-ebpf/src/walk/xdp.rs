//! The paths of packets of translated flows through XDP: a client's packet to a backend on another
//! node, and a reply from the tunnel to its client. TC handles packets that must wait, be answered
//! or be segmented.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use overlay_common::{
    Be32, Reason, UNDERLAY_VNI, VXLAN_OVERHEAD,
    maps::{CONNTRACK_REPLY, Published, VNI_FLAG_IPV6},
};

use crate::{
    family::xdp::XdpFamily,
    maps::{
        config,
        work::{Area, area},
    },
    outcome::{Outcome, Verdict, pack, unpack},
    packet::{
        frame::ETH_LEN,
        xdp_frame::{length, push, send, write},
    },
    service::{
        conntrack::{self, check_backend},
        route, stats,
    },
    tunnel::{next_hop, vxlan::INNER},
};

/// The action for packets that TC handles.
const PASS: i32 = xdp_action::XDP_PASS as i32;

/// Handles a packet of a client outside to a published port, whose flow is in the work area. If the
/// backend is on another node, the packet leaves from here.
#[inline(always)]
pub fn to_published<F: XdpFamily>(
    ctx: &XdpContext,
    ip: &F::Header,
    published: &Published,
    mut work: Area,
) -> Outcome {
    let (number, target) = (published.service, published.target);
    match route::route(&mut work, number, target, (length(ctx), 0)) {
        // TC gives the answer.
        Err(Reason::NoBackend | Reason::BackendGone) => return Ok(Verdict::PASS),
        routed => routed?,
    }
    Ok(verdict(
        if F::OWN_FUNCTIONS {
            unpack(to_backend_packed::<F>(ctx.ctx, ip))? as i32
        } else {
            to_backend::<F>(ctx, ip)?
        },
        Reason::XdpEncapsulated,
    ))
}

/// Handles a tunnel packet from the node `sender` that may be the reply of a flow that this node
/// translated. The flow is in the work area.
#[inline(always)]
pub fn reply<F: XdpFamily>(
    ctx: &XdpContext,
    ip: &F::Header,
    sender: Be32,
    mut work: Area,
) -> Result<Option<Verdict>, Reason> {
    {
        let work = &mut *work;
        if conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_REPLY {
            return Ok(None);
        }
    }
    // TC handles clients on this node.
    if work.entry.vni & !VNI_FLAG_IPV6 != UNDERLAY_VNI {
        return Ok(Some(Verdict::PASS));
    }
    check_backend(&work.entry, sender)?;
    Ok(Some(verdict(
        if F::OWN_FUNCTIONS {
            unpack(to_client_packed::<F>(ctx.ctx, ip))? as i32
        } else {
            to_client::<F>(ctx, ip)?
        },
        Reason::XdpSentToClient,
    )))
}

/// The verdict of [`to_backend`] or [`to_client`].
#[inline(always)]
fn verdict(action: i32, reason: Reason) -> Verdict {
    if action == PASS { Verdict::PASS } else { Verdict::done(action, reason) }
}

#[inline(never)]
fn to_backend_packed<F: XdpFamily>(ctx: *mut xdp_md, ip: &F::Header) -> i64 {
    pack(to_backend::<F>(&XdpContext::new(ctx), ip).map(|action| action as u32))
}

#[inline(never)]
fn to_client_packed<F: XdpFamily>(ctx: *mut xdp_md, ip: &F::Header) -> i64 {
    pack(to_client::<F>(&XdpContext::new(ctx), ip).map(|action| action as u32))
}

/// Sends a packet of the flow in the work area to its backend, if that is on another node and its
/// next hop is known.
#[inline(always)]
fn to_backend<F: XdpFamily>(ctx: &XdpContext, ip: &F::Header) -> Result<i32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let work = area()?;
    if work.backend.node == Be32::ZERO {
        return Ok(PASS);
    }
    let gateway = F::inner_source(ip, work)?;
    let length = length(ctx);
    let total = length + VXLAN_OVERHEAD - ETH_LEN as u32;
    let hop = match next_hop::to_node(ctx.ctx.cast(), config, work.backend.node, total) {
        // TC can wait for the neighbour and answer the client; XDP cannot.
        Err(Reason::TooBig) => return Ok(PASS),
        hop => hop?,
    };
    if hop.resolved == 0 {
        return Ok(PASS);
    }
    F::keep(work);
    stats::request(&work, length);
    F::resolve()?;
    F::rewrite(ctx, ip, ETH_LEN, work)?;
    push(ctx, VXLAN_OVERHEAD as i32)?;
    F::write_headers(ctx, config, hop, ip, (gateway, length), work)?;
    Ok(send(ctx, hop.ifindex))
}

/// Sends a reply of the flow in the work area from the tunnel to its client, if its next hop is
/// known.
#[inline(always)]
fn to_client<F: XdpFamily>(ctx: &XdpContext, ip: &F::Header) -> Result<i32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let work = area()?;
    F::resolve()?;
    let total = F::total_length(ip, work);
    let hop = match F::next_hop(ctx, config, total, work) {
        // TC can answer the backend.
        Err(Reason::TooBig) => return Ok(PASS),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(PASS);
    }
    stats::reply(&work, total + ETH_LEN as u32);
    F::rewrite(ctx, ip, INNER + ETH_LEN, work)?;
    push(ctx, -(VXLAN_OVERHEAD as i32))?;
    write(ctx, 0, hop.ethernet)?;
    Ok(send(ctx, hop.ifindex))
}
