//! `from_outside`: packets from an interface other than the underlay's that leads outside:
//! published ports, and replies to containers.

use aya_ebpf::programs::TcContext;
use overlay_common::{Reason, VXLAN_OVERHEAD};

use crate::{
    maps::config,
    outcome::{Outcome, Verdict},
    packet::frame::{has_vlan_tag, pull},
    tunnel::outer::is_to_vtep,
    walk::host4::{self, HEADERS, not_ipv4, outer_headers},
};

/// Handles a packet from the interface.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> Outcome {
    // As many bytes as the packet that an ICMP error quotes needs.
    pull(ctx, VXLAN_OVERHEAD + HEADERS);
    let Some(config) = config() else {
        return Ok(Verdict::PASS);
    };
    if has_vlan_tag(ctx) {
        // The VLAN's own interface receives the packet again, without the tag.
        return Ok(Verdict::PASS);
    }
    if is_to_vtep(ctx, config) {
        return Err(Reason::NotPeer);
    }
    match outer_headers(ctx) {
        Some((ip, udp)) => host4::receive(ctx, config, &ip, &udp),
        None => not_ipv4(ctx),
    }
}
