//! Next hops to other nodes from the host's routing table, cached for a short time.
//!
//! The kernel's look-up costs as much as all other look-ups for a packet, and its answer is the
//! same for all packets to a node. The programs do not learn of changes, so they use an answer for
//! a short time only ([`CachedNextHop::LIFETIME`]). They look up an unresolved next hop for every
//! packet.

use aya_ebpf::{cty::c_void, helpers::bpf_jiffies64};
use overlay_common::{
    Be32, Reason,
    maps::{CachedNextHop, Config},
};

use crate::{
    forward::route::{next_hop, via},
    maps::NEXT_HOPS,
    outcome,
    tunnel::underlay,
};

/// The next hop to another node. `total` is the length in bytes of the outer IP packet, for the
/// check against the route's MTU.
///
/// # Errors
/// Those of [`next_hop`].
#[inline(always)]
pub fn to_node(
    ctx: *mut c_void,
    config: &Config,
    node: Be32,
    total: u32,
) -> Result<&'static CachedNextHop, Reason> {
    let hop = NEXT_HOPS.get_ptr_mut(CachedNextHop::index(node)).ok_or(Reason::NotConfigured)?;
    // SAFETY: the array entry exists as long as the program, and no other run on this CPU overlaps.
    let hop = unsafe { &mut *hop };
    // SAFETY: a helper without preconditions; the JIT makes one load of it.
    let now = unsafe { bpf_jiffies64() };
    let is_current = hop.node == node && hop.vtep == config.vtep && hop.via == via(config);
    if !is_current || now.wrapping_sub(hop.asked) > CachedNextHop::LIFETIME {
        hop.node = node;
        hop.asked = now;
        outcome::unpack(look_up(ctx, config, hop, total))?;
    } else if total > hop.mtu {
        return Err(Reason::TooBig);
    }
    Ok(hop)
}

/// Looks up the next hop to `hop.node`, at the time `hop.asked`.
#[inline(never)]
fn look_up(ctx: *mut c_void, config: &Config, hop: &mut CachedNextHop, total: u32) -> i64 {
    hop.vtep = config.vtep;
    hop.via = via(config);
    let answer = if underlay::is_ipv6() {
        match underlay::vtep6(&hop.node) {
            Some(vtep) => {
                hop.vtep6 = *vtep;
                next_hop(ctx, config, (&config.vtep6, &hop.vtep6), total)
            }
            None => Err(Reason::NoRoute),
        }
    } else {
        next_hop(ctx, config, (config.vtep, hop.node), total)
    };
    hop.asked = match &answer {
        Ok(next) => {
            hop.ifindex = next.ifindex;
            hop.ethernet = next.ethernet;
            // Loopback's MTU of 65536 does not fit the kernel's answer.
            hop.mtu = if next.mtu == 0 { 1 << 16 } else { u32::from(next.mtu) };
            hop.resolved = u16::from(next.resolved);
            if next.resolved { hop.asked } else { 0 }
        }
        Err(_) => 0,
    };
    outcome::pack(answer.map(|_| 0))
}
