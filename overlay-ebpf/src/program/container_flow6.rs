//! `container_flow6`: IPv6 packets of a container to a VIP, from or to a backend, or out of its
//! network. `from_container` has checked them and left their destination in the work area.

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

/// Bytes of headers that are read directly: Ethernet, IPv6 and TCP.
const HEADERS: u32 = 74;

/// The sending endpoint, and the result of [`crate::observe::event::keep`] for the packet.
///
/// # Errors
/// [`Reason::NotConfigured`].
#[inline(always)]
pub fn sender() -> Result<(Link, i64), Reason> {
    area().map(|work| (work.ipv6.link, work.ipv6.kept))
}

/// Handles the packet that `from_container` has left in the work area.
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
