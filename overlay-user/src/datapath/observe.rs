//! What the maps tell of the traffic beyond the counters by reason.

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

/// The sum of two counters.
pub fn sum(a: Counter, b: &Counter) -> Counter {
    Counter { packets: a.packets.wrapping_add(b.packets), bytes: a.bytes.wrapping_add(b.bytes) }
}
