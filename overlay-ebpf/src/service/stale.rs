//! Backends that are no more while connections to them go on.

use overlay_common::{Mac, maps::EndpointKey};

use crate::maps::{STALE_BACKENDS, addr6_id};

/// Whether a container's IPv6 packet was to a stale backend: sockets send to the MAC that they have
/// learned, which says the backend's IPv4 address.
#[inline(always)]
pub fn is_known6(vni: u32, to: Mac) -> bool {
    STALE_BACKENDS.get_ptr(&EndpointKey { vni, ip: addr6_id::ipv4_of(to) }).is_some()
}
