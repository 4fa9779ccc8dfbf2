//! The maps that the programs write: flows, with their state and their statistics.

use std::{collections::BTreeMap, os::fd::AsFd as _, time::Duration};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    Be32, Ip6,
    maps::{
        self, Affinity, AffinityKey, BackendStats, BackendStatsKey, Conntrack, ConntrackKey,
        Fragment, FragmentKey, SnatUsage,
    },
};

use super::{FLOWS, IFINDEX, Rig, entries};
use crate::bpf;

impl Rig {
    /// All conntrack entries, of flows in use and of new ones.
    pub fn conntrack(&self) -> Vec<(ConntrackKey, Conntrack)> {
        FLOWS.iter().flat_map(|map| self.flows(map)).collect()
    }

    /// The entries of one of the maps [`FLOWS`].
    pub fn flows(&self, map: &str) -> Vec<(ConntrackKey, Conntrack)> {
        entries(self.ebpf.map(map).expect(map))
    }

    /// Writes or removes an entry of one of the maps [`FLOWS`].
    pub fn set_flow(&mut self, map: &str, key: ConntrackKey, entry: Option<Conntrack>) {
        self.write(map, key, entry);
    }

    /// Writes the entry of a flow in use, or removes it from any of the maps.
    pub fn set_conntrack(&mut self, key: ConntrackKey, entry: Option<Conntrack>) {
        self.write("ct_new", key, None::<Conntrack>);
        self.write("conntrack", key, entry);
    }

    /// Writes conntrack entries by few calls.
    pub fn fill_conntrack(&mut self, entries: impl Iterator<Item = (ConntrackKey, Conntrack)>) {
        let Some(Map::LruHashMap(map)) = self.ebpf.map("conntrack") else { panic!("no conntrack") };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (key, value) in entries {
            keys.push(key);
            values.push(value);
        }
        bpf::write(map.fd().as_fd(), &keys, &values).expect("entries are written");
    }

    /// How many flows a counted backend has.
    pub fn active(&self, backend: u32) -> Option<maps::Active> {
        let map = self.ebpf.map("active").expect("map active");
        let map: HashMap<&MapData, u32, maps::Active> = HashMap::try_from(map).expect("active");
        match map.get(&backend, 0) {
            Ok(flows) => Some(flows),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("active: {error}"),
        }
    }

    /// Sets or forgets how many flows a backend has, whether it is counted or not.
    pub fn set_active(&mut self, backend: u32, flows: Option<maps::Active>) {
        self.write("active", backend, flows);
    }

    /// The affinity entries of clients.
    pub fn affinity(&self) -> Vec<(AffinityKey, Affinity)> {
        entries(self.ebpf.map("affinity").expect("map affinity"))
    }

    /// Writes or removes the affinity entry of a client.
    pub fn set_affinity(&mut self, key: AffinityKey, entry: Option<Affinity>) {
        self.write("affinity", key, entry);
    }

    /// The packets with a known first fragment.
    pub fn fragments(&self) -> Vec<(FragmentKey, Fragment)> {
        entries(self.ebpf.map("fragments").expect("map fragments"))
    }

    /// Writes or forgets a packet's first fragment.
    pub fn set_fragment(&mut self, key: FragmentKey, fragment: Option<Fragment>) {
        self.write("fragments", key, fragment);
    }

    /// IPv6 addresses outside by their address ids: map `addr6_ids` or `addr6_ids_new`.
    pub fn outsiders(&self, map: &str) -> Vec<(Be32, Ip6)> {
        entries(self.ebpf.map(map).expect(map))
    }

    /// Writes or removes the address of an address id.
    pub fn set_outsider(&mut self, map: &str, number: Be32, address: Option<Ip6>) {
        self.write(map, number, address);
    }

    /// Sets the secret that numbers are made with.
    pub fn set_addr6_secret(&mut self, key: [u64; 2]) {
        let map = self.ebpf.map_mut("addr6_secret").expect("map addr6_secret");
        let mut map: Array<&mut MapData, maps::Addr6Secret> =
            Array::try_from(map).expect("addr6_secret");
        map.set(0, maps::Addr6Secret { key }, 0).expect("a seed");
    }

    /// The traffic between clients and backends, summed over all CPUs.
    pub fn backend_stats(&self) -> BTreeMap<BackendStatsKey, BackendStats> {
        let map = self.ebpf.map("backend_stats").expect("map backend_stats");
        let map: PerCpuHashMap<&MapData, BackendStatsKey, BackendStats> =
            PerCpuHashMap::try_from(map).expect("backend_stats");
        let of_all = |(key, values): (BackendStatsKey, PerCpuValues<BackendStats>)| {
            let sum = values.iter().fold(BackendStats::default(), |sum, one| sum.with(one));
            (key, sum)
        };
        map.iter().map(|entry| of_all(entry.expect("an entry"))).collect()
    }

    /// Forgets it.
    pub fn clear_backend_stats(&mut self) {
        let keys: Vec<_> = self.backend_stats().into_keys().collect();
        let map = self.ebpf.map_mut("backend_stats").expect("map backend_stats");
        let mut map: PerCpuHashMap<&mut MapData, BackendStatsKey, BackendStats> =
            PerCpuHashMap::try_from(map).expect("backend_stats");
        for key in keys {
            map.remove(&key).expect("an entry");
        }
    }

    /// How many picks a service has made.
    pub fn cursor(&self, service: u32) -> Option<maps::Cursor> {
        let map = self.ebpf.map("rr_cursor").expect("map rr_cursor");
        let map: HashMap<&MapData, u32, maps::Cursor> = HashMap::try_from(map).expect("rr_cursor");
        match map.get(&service, 0) {
            Ok(cursor) => Some(cursor),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("rr_cursor: {error}"),
        }
    }

    /// Sets or removes a service's cursor, whether there is such a service or not.
    pub fn set_cursor(&mut self, service: u32, cursor: Option<maps::Cursor>) {
        self.write("rr_cursor", service, cursor);
    }

    /// How many flows to the outside the tests' endpoint has.
    pub fn snat_usage(&self) -> Option<SnatUsage> {
        let map = self.ebpf.map("snat_usage").expect("map snat_usage");
        let map: HashMap<&MapData, u32, SnatUsage> = HashMap::try_from(map).expect("snat_usage");
        match map.get(&IFINDEX, 0) {
            Ok(usage) => Some(usage),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("usage: {error}"),
        }
    }

    /// Sets or forgets how many flows to the outside the tests' endpoint has.
    pub fn set_snat_usage(&mut self, usage: Option<SnatUsage>) {
        self.write("snat_usage", IFINDEX, usage);
    }

    /// Makes every conntrack entry look `seconds` older, if need be older than the machine's
    /// uptime.
    pub fn age_conntrack(&mut self, seconds: u64) {
        for map in FLOWS {
            for (key, entry) in self.flows(map) {
                let last_seen = entry.last_seen.wrapping_sub(seconds * 1_000_000_000);
                self.write(map, key, Some(Conntrack { last_seen, ..entry }));
            }
        }
    }
}

/// Waits until the machine has been up for so many seconds. The clock of the maps starts at boot,
/// so an entry made later can be aged by that time and its timestamp stays valid.
pub fn wait_for_uptime(seconds: u64) {
    let uptime = || {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock that every kernel has");
        Duration::from(now)
    };
    let wanted = Duration::from_secs(seconds);
    while let Some(missing) = wanted.checked_sub(uptime()) {
        std::thread::sleep(missing);
    }
}
