//! The programs' observation of a packet: the counters of endpoints and networks.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    maps::{Array, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf},
    util::nr_cpus,
};
use overlay_common::{
    Reason,
    event::{EVENT_KINDS, Event, Lost, Watch},
    maps::Counter,
    observe::{ALL_WAYS, COUNTER_INDEXES, DropKey, Tally, Traffic},
};

use super::Rig;

/// The counters of endpoints and networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Forwarded packets, by counter index, direction and reason.
    pub forwarded: BTreeMap<(u32, Traffic, Reason), Counter>,
    /// Packets that were dropped.
    pub dropped: BTreeMap<DropKey, Counter>,
}

/// A record of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The fixed part; its time is 0, so that events can be compared.
    pub event: Event,
    /// The packet's bytes.
    pub payload: Vec<u8>,
}

fn add(counter: &mut Counter, more: &Counter) {
    counter.packets += more.packets;
    counter.bytes += more.bytes;
}

impl Rig {
    /// The changes of the counters of endpoints and networks since the last call.
    pub(super) fn take_told(&mut self) -> Told {
        let indexes = self.indexes();
        let mut told = Told::default();
        let cpus = nr_cpus().expect("the number of CPUs");
        let map = self.ebpf.map_mut("endpoint_counters").expect("endpoint_counters");
        let mut map: PerCpuArray<&mut MapData, Tally> =
            PerCpuArray::try_from(map).expect("endpoint_counters");
        for counter in indexes {
            let values = map.get(&counter, 0).expect("a tally");
            if values.iter().all(|tally| *tally == Tally::default()) {
                continue;
            }
            for tally in values.iter() {
                for (index, counter) in tally.ways.iter().enumerate() {
                    let is_way = ALL_WAYS.iter().any(|(way, ..)| *way == index);
                    assert!(is_way || counter.packets == 0, "{index} is no way");
                }
                for (way, traffic, reason) in ALL_WAYS {
                    if tally.ways[*way].packets > 0 {
                        let key = (counter, *traffic, *reason);
                        add(told.forwarded.entry(key).or_default(), &tally.ways[*way]);
                    }
                }
            }
            let zero = PerCpuValues::try_from(vec![Tally::default(); cpus]).expect("as many");
            map.set(counter, zero, 0).expect("cleared");
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

    /// Watches from now on, and captures the endpoints with these counter indexes.
    pub fn watch(&mut self, watch: Watch, counters: &[u32]) {
        let map = self.ebpf.map_mut("watched").expect("watched");
        let mut map: Array<&mut MapData, u32> = Array::try_from(map).expect("watched");
        let counters = counters.iter().copied().collect();
        for counter in self.watched.symmetric_difference(&counters) {
            map.set(*counter, u32::from(counters.contains(counter)), 0).expect("set");
        }
        self.watched = counters;
        let map = self.ebpf.map_mut("watch").expect("watch");
        let mut map: Array<&mut MapData, Watch> = Array::try_from(map).expect("watch");
        map.set(0, watch, 0).expect("set");
    }

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<Record> {
        let map = self.ebpf.map_mut("events").expect("events");
        let mut ring = RingBuf::try_from(map).expect("events");
        let mut records = Vec::new();
        while let Some(bytes) = ring.next() {
            let (event, payload) = bytes.split_at(size_of::<Event>());
            // SAFETY: there are as many bytes as the type has, and any bytes are a valid value.
            let event: Event = unsafe { event.as_ptr().cast::<Event>().read_unaligned() };
            assert_eq!(event.captured as usize, payload.len());
            assert!(event.time > 0);
            let event = Event { time: 0, ..event };
            records.push(Record { event, payload: payload.to_vec() });
        }
        records
    }

    /// How many events were lost ever, by kind.
    pub fn lost_events(&self) -> [u64; EVENT_KINDS] {
        let map = self.ebpf.map("lost_events").expect("lost_events");
        let map: PerCpuArray<&MapData, Lost> = PerCpuArray::try_from(map).expect("lost_events");
        std::array::from_fn(|kind| map.get(&(kind as u32), 0).expect("a number").iter().sum())
    }

    /// The counter indexes in the maps, as far as they exist.
    fn indexes(&self) -> BTreeSet<u32> {
        let state = &self.state;
        let links = state.links.values().map(|link| link.counter);
        let endpoints = state.endpoints.values().map(|endpoint| endpoint.counter);
        let backends = state.backends.values().map(|backend| backend.counter);
        let all = links.chain(endpoints).chain(backends);
        all.filter(|counter| (*counter as usize) < COUNTER_INDEXES).collect()
    }
}
