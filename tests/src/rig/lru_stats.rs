//! The statistics of the LRU maps.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{MapData, PerCpuArray},
};
use overlay_common::maps::{Lru, LruStats};

use super::{Rig, entries};

impl Rig {
    /// The statistics that the programs keep of a map, summed over all CPUs.
    pub fn lru_stats(&self, lru: Lru) -> LruStats {
        let map = self.ebpf.map("lru_stats").expect("map lru_stats");
        let map: PerCpuArray<&MapData, LruStats> = PerCpuArray::try_from(map).expect("lru_stats");
        let values = map.get(&(lru as u32), 0).expect("a counter");
        values.iter().fold(LruStats::default(), LruStats::with)
    }

    /// The counters that have moved.
    pub fn all_lru_stats(&self) -> BTreeMap<Lru, LruStats> {
        let moved = Lru::ALL.into_iter().map(|lru| (lru, self.lru_stats(lru)));
        moved.filter(|(_, lru_stats)| *lru_stats != LruStats::default()).collect()
    }

    /// How many entries a map holds.
    pub fn held<K: Pod, V: Pod>(&self, lru: Lru) -> u64 {
        entries::<K, V>(self.ebpf.map(lru.name()).expect("an LRU map")).len() as u64
    }
}
