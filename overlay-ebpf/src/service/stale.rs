//! Stale backends: backends that were removed while connections to them continue.

use overlay_common::{Mac, maps::EndpointKey};

use crate::maps::{STALE_BACKENDS, addr6_id};

/// Whether a container's IPv6 packet is for a stale backend. The socket sends to the MAC that it
/// has learned, and the backend's IPv4 address follows from the MAC.
#[inline(always)]
pub fn is_known6(vni: u32, to: Mac) -> bool {
    STALE_BACKENDS.get_ptr(&EndpointKey { vni, ip: addr6_id::ipv4_of(to) }).is_some()
}
