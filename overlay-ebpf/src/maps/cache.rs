//! Looking up endpoints and links, by way of what this CPU remembers of an epoch.

use overlay_common::maps::{Endpoint, EndpointKey, KnownEndpoint, KnownLink, Link};

use crate::maps::{ENDPOINTS, EPOCH, KNOWN_ENDS, KNOWN_LINKS, LINKS, lookup};

/// The epoch. It must be read before what is remembered in it is looked up: a write in between then
/// makes that of an epoch that is over.
#[inline(always)]
fn epoch() -> u64 {
    match EPOCH.get_ptr(0) {
        // SAFETY: the slot exists as long as the program; volatile, because it changes meanwhile.
        Some(epoch) => unsafe { epoch.read_volatile() },
        None => 0,
    }
}

/// The entry of `endpoints` under `key`.
#[inline(always)]
pub fn endpoint(key: &EndpointKey) -> Option<Endpoint> {
    let epoch = epoch();
    let Some(known) = KNOWN_ENDS.get_ptr_mut(KnownEndpoint::slot(key)) else {
        return lookup(&ENDPOINTS, key);
    };
    // SAFETY: the slot exists as long as the program, and no other run on this CPU overlaps.
    let known = unsafe { &mut *known };
    if known.epoch != epoch || known.key != *key || epoch == 0 {
        known.endpoint = lookup(&ENDPOINTS, key)?;
        known.key = *key;
        known.epoch = epoch;
    }
    Some(known.endpoint)
}

/// The entry of `links` for an interface.
#[inline(always)]
pub fn link(ifindex: u32) -> Option<Link> {
    let epoch = epoch();
    let Some(known) = KNOWN_LINKS.get_ptr_mut(KnownLink::slot(ifindex)) else {
        return lookup(&LINKS, &ifindex);
    };
    // SAFETY: as above.
    let known = unsafe { &mut *known };
    if known.epoch != epoch || known.ifindex != ifindex || epoch == 0 {
        known.link = lookup(&LINKS, &ifindex)?;
        known.ifindex = ifindex;
        known.epoch = epoch;
    }
    Some(known.link)
}
