//! Caches of the tables that the programs read for every packet.

use super::{ENDPOINT_CACHE_ENTRIES, Endpoint, EndpointKey, LINK_CACHE_ENTRIES, Link};

/// Map `generation`, array of one `u64`: number of writes to `endpoints` and `links`. The agent
/// writes it after each of its writes to them, and once when it takes over the maps; the programs
/// read it for every packet. While it is 0, the programs cache nothing.
pub type Generation = u64;

/// Map `endpoint_cache`, per-CPU array indexed by [`CachedEndpoint::index`]: cached entries of
/// `endpoints`, each with its generation. A look-up in the hash map takes several times as long.
/// Written and read by the programs only, each CPU for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedEndpoint {
    /// The generation of the look-up; 0 for an empty entry.
    pub generation: Generation,
    /// The key that was looked up.
    pub key: EndpointKey,
    /// The result.
    pub endpoint: Endpoint,
}

impl CachedEndpoint {
    /// Index of the cache entry for an address of a network.
    #[inline(always)]
    pub const fn index(key: &EndpointKey) -> u32 {
        // Networks often have the same addresses and differ in the VNI only. Neighbouring addresses
        // differ in the bits that come last on the wire.
        let mixed = key.ip.raw().swap_bytes() ^ key.vni.rotate_left(16);
        // A multiplication by the fraction of the golden ratio spreads consecutive numbers.
        mixed.wrapping_mul(0x9e37_79b1) >> (u32::BITS - ENDPOINT_CACHE_ENTRIES.ilog2())
    }
}

/// Map `link_cache`, per-CPU array indexed by [`CachedLink::index`]: cached entries of `links`, as
/// in `endpoint_cache`. Written and read by the programs only, each CPU for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedLink {
    /// The generation of the look-up; 0 for an empty entry.
    pub generation: Generation,
    /// Index of the interface that was looked up.
    pub ifindex: u32,
    /// The result.
    pub link: Link,
}

impl CachedLink {
    /// Index of the cache entry for an interface.
    #[inline(always)]
    pub const fn index(ifindex: u32) -> u32 {
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
        let index = |key| CachedEndpoint::index(&key);
        assert!(
            (0..100_000)
                .all(|n| (index(key(n, 0x0a00_0000 + n)) as usize) < ENDPOINT_CACHE_ENTRIES)
        );
        let of_one: HashSet<u32> = (0..500).map(|n| index(key(4096, 0x0a00_0000 + n))).collect();
        assert!(of_one.len() > 450, "{} entries for 500 addresses", of_one.len());
        let of_many: HashSet<u32> =
            (0..200).map(|n| index(key(4096 + n, 0x0a00_0002 + (n << 8)))).collect();
        assert!(of_many.len() > 150, "{} entries for an address of 200 networks", of_many.len());
    }

    #[test]
    fn interfaces_made_one_after_another_are_remembered_side_by_side() {
        let indexes: HashSet<u32> =
            (70_000..70_000 + LINK_CACHE_ENTRIES as u32).map(CachedLink::index).collect();
        assert_eq!(indexes.len(), LINK_CACHE_ENTRIES);
    }
}
