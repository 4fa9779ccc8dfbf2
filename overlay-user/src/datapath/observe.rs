//! The traffic statistics of the maps, besides the counters by reason.

use std::collections::BTreeMap;

use overlay_common::{
    maps::Counter,
    observe::{DropKey, Tally},
};

/// Counters of endpoints and networks, sums over the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breakdown {
    /// Packets that went on, by the endpoints' slots.
    pub forwarded: BTreeMap<u32, Tally>,
    /// Packets that were dropped.
    pub dropped: BTreeMap<DropKey, Counter>,
}

/// How full a map is that forgets the least recent entry to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries that it holds.
    pub entries: u64,
    /// Entries that it has room for.
    pub room: u64,
    /// Entries that the kernel has thrown out to make room, since the map was made.
    pub evicted: u64,
}

/// The sum of two counters.
pub fn sum(a: Counter, b: &Counter) -> Counter {
    Counter { packets: a.packets.wrapping_add(b.packets), bytes: a.bytes.wrapping_add(b.bytes) }
}
