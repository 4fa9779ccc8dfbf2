//! What the programs remember of the tables that every packet needs.

use super::{ENDPOINT_CACHE_ENTRIES, Endpoint, EndpointKey, LINK_CACHE_ENTRIES, Link};

/// Map `generation`, array of one `u64`: how often `endpoints` or `links` were written. Written by the agent
/// after each of its writes to them, and once when it takes the maps over; read for every packet.
/// While it is 0, nothing is remembered.
pub type Generation = u64;

/// Map `endpoint_cache`, per-CPU array indexed by [`CachedEndpoint::slot`]: entries of `endpoints` as they
/// were in a generation, because the look-up in that map's hash takes several times as long. Written and
/// read by the programs only, each CPU by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedEndpoint {
    /// The generation in which it was looked up; 0 for never.
    pub generation: Generation,
    /// What was looked up.
    pub key: EndpointKey,
    /// What was found.
    pub endpoint: Endpoint,
}

impl CachedEndpoint {
    /// Where an address of a network is remembered.
    #[inline(always)]
    pub const fn slot(key: &EndpointKey) -> u32 {
        // Networks that differ in the number only have the same addresses, and an address differs
        // from its neighbours in the bits that come last on the wire.
        let mixed = key.ip.raw().swap_bytes() ^ key.vni.rotate_left(16);
        // The golden ratio's fraction: consecutive numbers land far apart.
        mixed.wrapping_mul(0x9e37_79b1) >> (u32::BITS - ENDPOINT_CACHE_ENTRIES.ilog2())
    }
}

/// Map `link_cache`, per-CPU array indexed by [`CachedLink::slot`]: as `endpoint_cache`, entries of
/// `links`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedLink {
    /// The generation in which it was looked up; 0 for never.
    pub generation: Generation,
    /// Index of the interface that was looked up.
    pub ifindex: u32,
    /// What was found.
    pub link: Link,
}

impl CachedLink {
    /// Where an interface is remembered.
    #[inline(always)]
    pub const fn slot(ifindex: u32) -> u32 {
        ifindex % LINK_CACHE_ENTRIES as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Be32;
    use std::collections::HashSet;

    #[test]
    fn neighbours_and_networks_are_remembered_side_by_side() {
        let key = |vni, ip| EndpointKey { vni, ip: Be32::new(ip) };
        let slot = |key| CachedEndpoint::slot(&key);
        assert!(
            (0..100_000).all(|n| (slot(key(n, 0x0a00_0000 + n)) as usize) < ENDPOINT_CACHE_ENTRIES)
        );
        let of_one: HashSet<u32> = (0..500).map(|n| slot(key(4096, 0x0a00_0000 + n))).collect();
        assert!(of_one.len() > 450, "{} slots for 500 addresses", of_one.len());
        let of_many: HashSet<u32> =
            (0..200).map(|n| slot(key(4096 + n, 0x0a00_0002 + (n << 8)))).collect();
        assert!(of_many.len() > 150, "{} slots for an address of 200 networks", of_many.len());
    }

    #[test]
    fn interfaces_made_one_after_another_are_remembered_side_by_side() {
        let slots: HashSet<u32> =
            (70_000..70_000 + LINK_CACHE_ENTRIES as u32).map(CachedLink::slot).collect();
        assert_eq!(slots.len(), LINK_CACHE_ENTRIES);
    }
}
