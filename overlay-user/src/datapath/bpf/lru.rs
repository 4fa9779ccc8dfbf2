//! Fill levels of the LRU maps, and the number of entries that the kernel has evicted.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use overlay_common::maps::{Lru, LruStats};

use super::{bad_pin, kernel, pins::Pins, sys, tables::take, words};
use crate::datapath::{DatapathError, Fill};

/// The map with the programs' counters.
pub(super) const LRU_STATS: &str = "lru_stats";

/// The LRU maps and their counters.
pub(super) struct LruTables {
    lru_stats: PerCpuArray<MapData, LruStats>,
    maps: Vec<(Lru, MapData)>,
    /// The last reported values: a counter never decreases.
    evicted: BTreeMap<Lru, u64>,
}

impl LruTables {
    /// Takes the counters. If they are new (`is_new`), the entries in the maps are older: programs
    /// without counters made them.
    pub(super) fn take(ebpf: &mut Ebpf, pins: &Pins, is_new: bool) -> Result<Self, DatapathError> {
        let open = |lru: Lru| {
            let path = pins.map(lru.name());
            let map = MapData::from_pin(&path).map_err(|e| bad_pin(&path, &e))?;
            Ok((lru, map))
        };
        let maps = Lru::ALL.into_iter().map(open).collect::<Result<_, DatapathError>>()?;
        let mut tables = Self { lru_stats: take(ebpf, LRU_STATS)?, maps, evicted: BTreeMap::new() };
        if is_new {
            tables.begin()?;
        }
        Ok(tables)
    }

    fn begin(&mut self) -> Result<(), DatapathError> {
        let failed = |e: String| kernel(format!("write the map {LRU_STATS}"), e);
        let cpus = nr_cpus().map_err(|(file, e)| failed(format!("{file}: {e}")))?;
        for (lru, map) in &self.maps {
            let mut values = vec![LruStats::default(); cpus];
            values[0].made = held(*lru, map)?.entries;
            let values = PerCpuValues::try_from(values).map_err(|e| failed(e.to_string()))?;
            let written = self.lru_stats.set(*lru as u32, values, 0);
            written.map_err(|e| failed(words(&e)))?;
        }
        Ok(())
    }

    pub(super) fn read(&mut self) -> Result<BTreeMap<Lru, Fill>, DatapathError> {
        let mut fills = BTreeMap::new();
        for (lru, map) in &self.maps {
            let before = self.lru_stats(*lru)?;
            let mut fill = held(*lru, map)?;
            let evicted = before.evicted(fill.entries, &self.lru_stats(*lru)?);
            let told = self.evicted.entry(*lru).or_default();
            *told = evicted.max(*told);
            fill.evicted = *told;
            fills.insert(*lru, fill);
        }
        Ok(fills)
    }

    fn lru_stats(&self, lru: Lru) -> Result<LruStats, DatapathError> {
        let values = self.lru_stats.get(&(lru as u32), 0);
        let values = values.map_err(|e| kernel(format!("read the map {LRU_STATS}"), words(&e)))?;
        Ok(values.iter().fold(LruStats::default(), LruStats::with))
    }
}

/// The number of entries of a map, and its capacity.
fn held(lru: Lru, map: &MapData) -> Result<Fill, DatapathError> {
    let failed = |e: String| kernel(format!("count the entries of the map {}", lru.name()), e);
    let info = map.info().map_err(|e| failed(words(&e)))?;
    let sizes = (info.key_size(), info.value_size());
    let entries = sys::count_entries(map.fd().as_fd(), sizes).map_err(|e| failed(e.to_string()))?;
    Ok(Fill { entries, room: info.max_entries().into(), evicted: 0 })
}
