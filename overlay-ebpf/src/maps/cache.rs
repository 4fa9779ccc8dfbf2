//! Look-ups of endpoints and links through this CPU's cache.

use overlay_common::maps::{CachedEndpoint, CachedLink, Endpoint, EndpointKey, Link};

use crate::maps::{ENDPOINT_CACHE, ENDPOINTS, GENERATION, LINK_CACHE, LINKS, lookup};

/// The current generation. A program must read it before it looks up the entry to cache. A write
/// between the two then gives the cached entry a generation that is over.
#[inline(always)]
fn generation() -> u64 {
    match GENERATION.get_ptr(0) {
        // SAFETY: the array entry exists as long as the program. The read is volatile because the
        // value changes.
        Some(generation) => unsafe { generation.read_volatile() },
        None => 0,
    }
}

/// The entry of `endpoints` under `key`.
#[inline(always)]
pub fn endpoint(key: &EndpointKey) -> Option<Endpoint> {
    let generation = generation();
    let Some(cached) = ENDPOINT_CACHE.get_ptr_mut(CachedEndpoint::index(key)) else {
        return lookup(&ENDPOINTS, key);
    };
    // SAFETY: the array entry exists as long as the program, and no other run on this CPU overlaps.
    let cached = unsafe { &mut *cached };
    if cached.generation != generation || cached.key != *key || generation == 0 {
        cached.endpoint = lookup(&ENDPOINTS, key)?;
        cached.key = *key;
        cached.generation = generation;
    }
    Some(cached.endpoint)
}

/// The entry of `links` for an interface.
#[inline(always)]
pub fn link(ifindex: u32) -> Option<Link> {
    let generation = generation();
    let Some(cached) = LINK_CACHE.get_ptr_mut(CachedLink::index(ifindex)) else {
        return lookup(&LINKS, &ifindex);
    };
    // SAFETY: as above.
    let cached = unsafe { &mut *cached };
    if cached.generation != generation || cached.ifindex != ifindex || generation == 0 {
        cached.link = lookup(&LINKS, &ifindex)?;
        cached.ifindex = ifindex;
        cached.generation = generation;
    }
    Some(cached.link)
}
