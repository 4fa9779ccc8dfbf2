//! What the programs tell of a packet: the counters of endpoints and networks.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    maps::{MapData, PerCpuArray, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use overlay_common::{
    Reason,
    maps::Counter,
    observe::{ALL_WAYS, DropKey, ENDPOINT_SLOTS, Tally, Traffic},
};

use super::Rig;

/// What was counted for endpoints and networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Packets that went on, by slot, direction and reason.
    pub forwarded: BTreeMap<(u32, Traffic, Reason), Counter>,
    /// Packets that were dropped.
    pub dropped: BTreeMap<DropKey, Counter>,
}

fn add(counter: &mut Counter, more: &Counter) {
    counter.packets += more.packets;
    counter.bytes += more.bytes;
}

impl Rig {
    /// What was counted for endpoints and networks since the last time.
    pub(super) fn take_told(&mut self) -> Told {
        let slots = self.slots();
        let mut told = Told::default();
        let cpus = nr_cpus().expect("the number of CPUs");
        let map = self.ebpf.map_mut("endpoint_counters").expect("endpoint_counters");
        let mut map: PerCpuArray<&mut MapData, Tally> =
            PerCpuArray::try_from(map).expect("endpoint_counters");
        for slot in slots {
            let values = map.get(&slot, 0).expect("a tally");
            if values.iter().all(|tally| *tally == Tally::default()) {
                continue;
            }
            for tally in values.iter() {
                let is_known = |at: usize| ALL_WAYS.iter().any(|(way, ..)| *way == at);
                let others = tally.ways.iter().enumerate().filter(|(at, _)| !is_known(*at));
                assert_eq!(others.map(|(_, way)| way.packets).sum::<u64>(), 0);
                for (way, traffic, reason) in ALL_WAYS {
                    if tally.ways[*way].packets > 0 {
                        let key = (slot, *traffic, *reason);
                        add(told.forwarded.entry(key).or_default(), &tally.ways[*way]);
                    }
                }
            }
            let zero = PerCpuValues::try_from(vec![Tally::default(); cpus]).expect("as many");
            map.set(slot, zero, 0).expect("cleared");
        }
        let map = self.ebpf.map_mut("drop_counters").expect("drop_counters");
        let mut map: PerCpuHashMap<&mut MapData, DropKey, Counter> =
            PerCpuHashMap::try_from(map).expect("drop_counters");
        let keys: Vec<DropKey> = map.keys().map(|key| key.expect("a key")).collect();
        for key in keys {
            let values = map.get(&key, 0).expect("a counter");
            let counter = told.dropped.entry(key).or_default();
            values.iter().for_each(|value| add(counter, value));
            map.remove(&key).expect("removed");
        }
        told
    }

    /// The slots that the maps give to somebody, as far as they exist.
    fn slots(&self) -> BTreeSet<u32> {
        let state = &self.state;
        let links = state.links.values().map(|link| link.slot);
        let endpoints = state.endpoints.values().map(|endpoint| endpoint.slot);
        let backends = state.backends.values().map(|backend| backend.slot);
        let all = links.chain(endpoints).chain(backends);
        all.filter(|slot| (*slot as usize) < ENDPOINT_SLOTS).collect()
    }
}
