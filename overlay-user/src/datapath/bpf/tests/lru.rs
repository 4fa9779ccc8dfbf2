//! How full the maps are that forget.

use aya::{
    maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use overlay_common::maps::LruStats;

use super::*;
use crate::datapath::{Fill, bpf::lru::LRU_STATS};

/// Writes flows, as programs do that count nothing.
fn track(host: &Host, flows: std::ops::Range<u32>) {
    let map = MapData::from_pin(Pins::new(&host.pin_dir()).map("conntrack")).expect("pinned");
    let mut map: HashMap<_, ConntrackKey, Conntrack> =
        HashMap::try_from(Map::LruHashMap(map)).expect("conntrack");
    for flow in flows {
        let key = ConntrackKey { saddr: Be32::new(flow), ..ConntrackKey::default() };
        map.insert(key, Conntrack::default(), 0).expect("written");
    }
}

/// Counts so many flows as made, and so many as removed, on the last CPU.
fn count(host: &Host, change: LruStats) {
    let map = MapData::from_pin(Pins::new(&host.pin_dir()).map(LRU_STATS)).expect("pinned");
    let mut map: PerCpuArray<_, LruStats> =
        PerCpuArray::try_from(Map::PerCpuArray(map)).expect("lru_stats");
    let mut values = map.get(&(Lru::Conntrack as u32), 0).expect("read").to_vec();
    let last = nr_cpus().expect("the number of CPUs") - 1;
    values[last] = values[last].with(&change);
    map.set(Lru::Conntrack as u32, PerCpuValues::try_from(values).expect("one each"), 0)
        .expect("written");
}

fn fill(datapath: &BpfDatapath) -> Fill {
    datapath.fills().expect("read")[&Lru::Conntrack]
}

#[test]
fn what_was_made_and_is_not_there_was_evicted() {
    let Some(host) = Host::new() else { return };
    let datapath = host.load(TcFlavour::detect());
    assert_eq!(fill(&datapath), Fill { entries: 0, room: 1024, evicted: 0 });
    track(&host, 0..500);
    count(&host, LruStats { made: 510, removed: 10 });
    assert_eq!(fill(&datapath), Fill { entries: 500, room: 1024, evicted: 0 });
    track(&host, 500..5_000);
    count(&host, LruStats { made: 4_500, removed: 0 });
    let full = fill(&datapath);
    assert_eq!(full.evicted, 5_000 - full.entries);
    assert!(full.entries > 512 && full.entries <= 1024, "{full:?}");
    let others =
        datapath.fills().expect("read").into_iter().filter(|(lru, _)| *lru != Lru::Conntrack);
    assert!(others.into_iter().all(|(_, fill)| fill.entries + fill.evicted == 0));
    // Flows that begin and end while entries are counted make the difference smaller, and no
    // counter goes back.
    count(&host, LruStats { made: 0, removed: 7 });
    assert_eq!(fill(&datapath), full);
    let restarted = host.load(TcFlavour::detect());
    assert_eq!(fill(&restarted), Fill { evicted: full.evicted - 7, ..full }, "it is in the map");
}

#[test]
fn entries_of_programs_that_counted_nothing_are_taken_for_made() {
    let Some(host) = Host::new() else { return };
    drop(host.load(TcFlavour::detect()));
    track(&host, 0..300);
    std::fs::remove_file(Pins::new(&host.pin_dir()).map(LRU_STATS)).expect("removed");
    let datapath = host.load(TcFlavour::detect());
    track(&host, 300..5_000);
    count(&host, LruStats { made: 4_700, removed: 0 });
    let Fill { entries, evicted, .. } = fill(&datapath);
    assert_eq!(evicted, 5_000 - entries);
    assert!(evicted > 3_900, "{evicted}");
}
