//! The family of the underlay. The whole cluster has one, and it is known before the programs are
//! loaded. The verifier removes the code for the other family.

use overlay_common::{Be32, Ip6, VXLAN_OVERHEAD, VXLAN_OVERHEAD6, hash, maps::Vtep6};

use crate::maps::VTEPS6;

/// Set to 1 by the loader for an IPv6 underlay.
#[unsafe(no_mangle)]
static UNDERLAY_IPV6: u32 = 0;

/// Whether the underlay is IPv6.
#[inline(always)]
pub fn is_ipv6() -> bool {
    // SAFETY: a reference is valid to read. The read is volatile because the loader changes the
    // value.
    unsafe { core::ptr::read_volatile(&raw const UNDERLAY_IPV6) != 0 }
}

/// Bytes that encapsulation puts in front of the inner frame.
#[inline(always)]
pub fn overhead() -> u32 {
    if is_ipv6() { VXLAN_OVERHEAD6 } else { VXLAN_OVERHEAD }
}

/// The VTEP of another node on an IPv6 underlay.
#[inline(always)]
pub fn vtep6(node: &Be32) -> Option<&'static Vtep6> {
    // SAFETY: the pointer comes from a successful look-up. If the kernel reuses the map entry for
    // another node, a packet in work goes there and is dropped.
    VTEPS6.get_ptr(node).map(|vtep| unsafe { &*vtep })
}

/// The number of the other node with this VTEP; `None` if there is none.
#[inline(always)]
pub fn node_of(vtep: &Ip6) -> Option<Be32> {
    let node = hash::of_node(vtep);
    if vtep6(&node) == Some(vtep) { Some(node) } else { None }
}
