//! `container_flow6`: IPv6 that a container sends to a VIP, as a backend or to one, or out of its network.
//! `from_container` has checked it and left what it is for in the work area.

use aya_ebpf::programs::TcContext;
use overlay_common::{Reason, maps::Link};

use crate::{
    family::{Sent, V6},
    maps::work::area,
    outcome::Outcome,
    packet::frame::pull,
    walk::{
        container,
        container6::{AIM_OUTSIDE, AIM_SERVICE, AIM_STALE},
        reject,
    },
};

/// Ethernet, IPv6 and TCP.
const HEADERS: u32 = 74;

/// The endpoint that sent the packet, and what was kept of the packet ([`crate::observe::event::keep`]).
///
/// # Errors
/// [`Reason::NotConfigured`].
#[inline(always)]
pub fn sender() -> Result<(Link, i64), Reason> {
    area().map(|work| (work.ipv6.link, work.ipv6.kept))
}

/// What `from_container` has left in the work area.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> Outcome {
    pull(ctx, HEADERS);
    let work = area()?;
    let packet = Sent::<V6> { ctx, link: work.ipv6.link, ethernet: work.ipv6.ethernet, ip: () };
    match work.ipv6.aim {
        AIM_SERVICE => container::to_service(&packet, work.ipv6.endpoint.service),
        AIM_OUTSIDE => container::to_outside(&packet),
        AIM_STALE => reject::stale(&packet),
        _ => container::to_endpoint(&packet, &work.ipv6.endpoint),
    }
}
