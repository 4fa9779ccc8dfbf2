//! What comes and goes in the maps that forget the least recent entries.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{MapData, PerCpuArray},
};
use overlay_common::maps::{Lru, Turnover};

use super::{Rig, entries};

impl Rig {
    /// What the programs have counted of a map, on all CPUs together.
    pub fn turnover(&self, lru: Lru) -> Turnover {
        let map = self.ebpf.map("turnover").expect("map turnover");
        let map: PerCpuArray<&MapData, Turnover> = PerCpuArray::try_from(map).expect("turnover");
        let values = map.get(&(lru as u32), 0).expect("a counter");
        values.iter().fold(Turnover::default(), Turnover::with)
    }

    /// The counters that have moved.
    pub fn turnovers(&self) -> BTreeMap<Lru, Turnover> {
        let moved = Lru::ALL.into_iter().map(|lru| (lru, self.turnover(lru)));
        moved.filter(|(_, turnover)| *turnover != Turnover::default()).collect()
    }

    /// How many entries a map holds.
    pub fn held<K: Pod, V: Pod>(&self, lru: Lru) -> u64 {
        entries::<K, V>(self.ebpf.map(lru.name()).expect("an LRU map")).len() as u64
    }
}
