//! `host_flow6`: IPv6 to an address of the host: published ports, and errors about their flows.
//! Anything else goes to the host.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    maps::{CONNTRACK_FORWARD, Published},
};

use crate::{
    family::V6,
    maps::work::{Area, PART_QUOTED, PART_WHOLE, area},
    outcome::{Outcome, Verdict},
    packet::{
        flow6,
        frame::{ETH_LEN, has_vlan_tag, is_gso, load_into, pull},
        ipv6::check_ipv6,
    },
    service::{conntrack, published},
    walk::host,
};

/// Bytes of headers that are read directly: Ethernet, IPv6 and TCP.
const HEADERS: u32 = 74;

/// Handles a packet to the host.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> Outcome {
    pull(ctx, HEADERS);
    let mut work = area()?;
    // The VLAN's own interface receives a tagged packet again, without the tag.
    if has_vlan_tag(ctx)
        || load_into(ctx, ETH_LEN, &mut work.ipv6.ip).is_err()
        || !published::is_on_host6(&work.ipv6.ip.dst)
    {
        return Ok(Verdict::PASS);
    }
    let read = flow6::read(ctx, ETH_LEN);
    if read.is_ok() && work.flow.part != PART_WHOLE {
        return of_known_flow(ctx, work);
    }
    let Some(published) = published_port(work) else {
        return Ok(Verdict::PASS);
    };
    read?;
    check(ctx, work)?;
    if !flow6::name(ctx, flow6::HOST, flow6::MAY_BE_NEW)? {
        return Err(Reason::ConntrackFull);
    }
    host::to_published::<V6>(ctx, &(), &published, work)
}

/// Handles later fragments and ICMPv6 errors. They go to the host unless their flow is known.
#[inline(always)]
fn of_known_flow(ctx: &TcContext, mut work: Area) -> Outcome {
    if flow6::name(ctx, flow6::HOST, 0) != Ok(true) {
        return Ok(Verdict::PASS);
    }
    let published = if work.flow.part == PART_QUOTED {
        let work = &mut *work;
        let is_known = conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_FORWARD;
        // The flow has a backend, or had one: the published port does not matter.
        if is_known { Some(Published::default()) } else { None }
    } else {
        published_port(work)
    };
    let Some(published) = published else {
        return Ok(Verdict::PASS);
    };
    check(ctx, work)?;
    host::to_published::<V6>(ctx, &(), &published, work)
}

/// The published port that the packet is for.
#[inline(always)]
fn published_port(work: Area) -> Option<Published> {
    let (proto, port) = (work.flow.key.proto, work.flow.key.dport);
    published::find_on_host6(&work.ipv6.ip.dst, proto, port)
}

/// Checks the header, and its length against the frame.
///
/// # Errors
/// Those of [`check_ipv6`].
#[inline(always)]
fn check(ctx: &TcContext, work: Area) -> Result<(), Reason> {
    check_ipv6(&work.ipv6.ip, ctx.len() - ETH_LEN as u32, is_gso(ctx))
}
