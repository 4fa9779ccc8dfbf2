//! The maps that tell of the traffic.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use nix::libc;
use overlay_common::{
    maps::{BackendStats, BackendStatsKey, Counter},
    observe::{DropKey, Tally},
};

use super::{
    kernel,
    tables::{errno, take},
    words,
};
use crate::datapath::{Breakdown, DatapathError, observe::sum};

/// The counters of endpoints and networks.
pub(super) struct TrafficTables {
    endpoints: PerCpuArray<MapData, Tally>,
    drops: PerCpuHashMap<MapData, DropKey, Counter>,
    served: PerCpuHashMap<MapData, BackendStatsKey, BackendStats>,
}

impl TrafficTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            endpoints: take(ebpf, "endpoint_counters")?,
            drops: take(ebpf, "drop_counters")?,
            served: take(ebpf, "backend_stats")?,
        })
    }

    /// The counters with these indexes, and all drops.
    pub(super) fn read(&self, counters: &BTreeSet<u32>) -> Result<Breakdown, DatapathError> {
        let mut forwarded = BTreeMap::new();
        for counter in counters {
            let values = self.endpoints.get(counter, 0).map_err(|e| {
                kernel(format!("read the endpoint counters with index {counter}"), words(&e))
            })?;
            let mut total = Tally::default();
            for tally in values.iter() {
                for (way, counter) in total.ways.iter_mut().zip(&tally.ways) {
                    *way = sum(*way, counter);
                }
            }
            forwarded.insert(*counter, total);
        }
        let mut dropped = BTreeMap::new();
        for key in self.drop_keys()? {
            match self.drops.get(&key, 0) {
                Ok(values) => {
                    dropped.insert(key, values.iter().fold(Counter::default(), sum));
                }
                // It went in between.
                Err(e) if errno(&e) == Some(libc::ENOENT) => {}
                Err(e) => return Err(kernel("read the map drop_counters", words(&e))),
            }
        }
        Ok(Breakdown { forwarded, dropped })
    }

    /// The traffic between clients and backends, summed over all CPUs.
    pub(super) fn backend_stats(
        &self,
    ) -> Result<BTreeMap<BackendStatsKey, BackendStats>, DatapathError> {
        let mut all = BTreeMap::new();
        for key in self.served_keys()? {
            match self.served.get(&key, 0) {
                Ok(values) => {
                    all.insert(
                        key,
                        values.iter().fold(BackendStats::default(), |sum, one| sum.with(one)),
                    );
                }
                // It went in between.
                Err(e) if errno(&e) == Some(libc::ENOENT) => {}
                Err(e) => return Err(kernel("read the map backend_stats", words(&e))),
            }
        }
        Ok(all)
    }

    /// Removes the counters of backends.
    pub(super) fn forget_backend_stats(
        &mut self,
        backends: &BTreeSet<u32>,
    ) -> Result<(), DatapathError> {
        for key in self.served_keys()? {
            if !backends.contains(&key.backend) {
                continue;
            }
            match self.served.remove(&key) {
                Err(e) if errno(&e) != Some(libc::ENOENT) => {
                    return Err(kernel("clear the counters of backends that are gone", words(&e)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn served_keys(&self) -> Result<BTreeSet<BackendStatsKey>, DatapathError> {
        let keys = self.served.keys().collect::<Result<_, _>>();
        keys.map_err(|e| kernel("list the map backend_stats", words(&e)))
    }

    fn drop_keys(&self) -> Result<BTreeSet<DropKey>, DatapathError> {
        let keys = self.drops.keys().collect::<Result<_, _>>();
        keys.map_err(|e| kernel("list the map drop_counters", words(&e)))
    }

    /// Sets the counters with these indexes to zero and removes their drops, and of these
    /// networks those that are no endpoint's.
    pub(super) fn forget(
        &mut self,
        counters: &BTreeSet<u32>,
        networks: &BTreeSet<u32>,
    ) -> Result<(), DatapathError> {
        let failed = |e: String| kernel("clear the counters of endpoints that are gone", e);
        let cpus = nr_cpus().map_err(|(file, e)| failed(format!("{file}: {e}")))?;
        for counter in counters {
            let zero = PerCpuValues::try_from(vec![Tally::default(); cpus])
                .map_err(|e| failed(e.to_string()))?;
            self.endpoints.set(*counter, zero, 0).map_err(|e| failed(words(&e)))?;
        }
        for key in self.drop_keys()? {
            let counter = u32::from(key.counter);
            if counters.contains(&counter) || (counter == 0 && networks.contains(&key.vni)) {
                match self.drops.remove(&key) {
                    Err(e) if errno(&e) != Some(libc::ENOENT) => return Err(failed(words(&e))),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
