//! Look-ups of IPv6 endpoints. Those of IPv4 go through [`crate::maps::cache`].

use overlay_common::{
    Ip6,
    maps::{ENDPOINT_FLAG_HOST, ENDPOINT_SERVICE, Endpoint6Key, EndpointKey},
};

use crate::maps::{ENDPOINTS, ENDPOINTS6, work::Ipv6Work};

/// Looks up the endpoint, VIP or gateway with address `ip` on network `vni` and leaves it in
/// `work.endpoint`. Returns its kind (`ENDPOINT_*`). The IPv4 address of an endpoint follows from
/// its link-local address.
#[inline(always)]
pub fn find6(work: &mut Ipv6Work, vni: u32, ip: Ip6) -> Option<u8> {
    let found = if ip.is_link_local() {
        match ip.ipv4_of_link_local() {
            Some(ip) => ENDPOINTS.get_ptr(&EndpointKey { vni, ip }),
            None => None,
        }
    } else {
        work.key = Endpoint6Key { vni, ip };
        ENDPOINTS6.get_ptr(&work.key)
    };
    let endpoint = found?;
    // SAFETY: the pointer comes from a successful look-up and is read before anything else runs.
    work.endpoint = unsafe { *endpoint };
    // The host link has no IPv6, and VIPs have no link-local address.
    let is_vip = work.endpoint.kind == ENDPOINT_SERVICE;
    if (is_vip && ip.is_link_local()) || work.endpoint.flags & ENDPOINT_FLAG_HOST != 0 {
        return None;
    }
    Some(work.endpoint.kind)
}
