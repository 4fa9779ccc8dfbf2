//! The maps that the agent reads and writes, with their types.

use std::collections::{BTreeMap, HashSet};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
};
use nix::libc;
use overlay_common::{
    Be32, Ip6, Reason,
    maps::{
        Active, Addr6, Address6, BACKEND_COUNTED, Backend, Config, Conntrack, ConntrackKey,
        Counter, Cursor, Egress, Endpoint, Endpoint6Key, EndpointKey, Flood, Frontend6,
        Frontend6Key, Generation, Link, Link6, LocalAddr, Netns, Network, Peer, PeerKey, Published,
        PublishedKey, SOCK_FLOWS, Service, Slot, SlotKey, SnatUsage, SockFlow, StaleBackend,
        Subnet, Subnet6, Subnet6Key, SubnetKey, TableKey, Vtep6,
    },
};

use super::{
    kernel,
    lb_table::{self, Outer},
    object::missing,
    words,
};
use crate::datapath::{DatapathError, DatapathState, MapOp, observe::sum as sum_of_two};

type Table<K, V> = HashMap<MapData, K, V>;

/// `BPF_NOEXIST` of linux/bpf.h.
const NOEXIST: u64 = 1;
/// `BPF_EXIST` of linux/bpf.h.
const EXIST: u64 = 2;

/// The maps that only the agent writes, and the cursors beside the services.
pub(super) struct AgentTables {
    networks: Table<u32, Network>,
    flood: Table<u32, Flood>,
    endpoints: Table<EndpointKey, Endpoint>,
    endpoints6: Table<Endpoint6Key, Endpoint>,
    addresses6: Table<EndpointKey, Address6>,
    links: Table<u32, Link>,
    links6: Table<u32, Link6>,
    peers: Table<PeerKey, Peer>,
    vteps6: Table<Be32, Vtep6>,
    services: Table<u32, Service>,
    rr_cursor: Table<u32, Cursor>,
    slots: Table<SlotKey, Slot>,
    tables: Outer,
    active: Table<u32, Active>,
    backends: Table<u32, Backend>,
    published: Table<PublishedKey, Published>,
    local_addrs: Table<Be32, LocalAddr>,
    local_addrs6: Table<Ip6, LocalAddr>,
    frontends6: Table<Frontend6Key, Frontend6>,
    egress: Table<u32, Egress>,
    subnets: LpmTrie<MapData, Be32, Subnet>,
    subnets6: LpmTrie<MapData, Ip6, Subnet6>,
    netns: Table<u64, Netns>,
    stale_backends: Table<EndpointKey, StaleBackend>,
    generation: Array<MapData, Generation>,
}

impl AgentTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let mut tables = Self {
            networks: take(ebpf, "networks")?,
            flood: take(ebpf, "flood")?,
            endpoints: take(ebpf, "endpoints")?,
            endpoints6: take(ebpf, "endpoints6")?,
            addresses6: take(ebpf, "addresses6")?,
            links: take(ebpf, "links")?,
            links6: take(ebpf, "links6")?,
            peers: take(ebpf, "peers")?,
            vteps6: take(ebpf, "vteps6")?,
            services: take(ebpf, "services")?,
            rr_cursor: take(ebpf, "rr_cursor")?,
            slots: take(ebpf, "slots")?,
            tables: take(ebpf, "lb_tables")?,
            active: take(ebpf, "active")?,
            backends: take(ebpf, "backends")?,
            published: take(ebpf, "published")?,
            local_addrs: take(ebpf, "local_addrs")?,
            local_addrs6: take(ebpf, "local_addrs6")?,
            egress: take(ebpf, "egress")?,
            subnets: take(ebpf, "subnets")?,
            subnets6: take(ebpf, "subnets6")?,
            frontends6: take(ebpf, "frontends6")?,
            netns: take(ebpf, "netns")?,
            stale_backends: take(ebpf, "stale_backends")?,
            generation: take(ebpf, "generation")?,
        };
        // An earlier process may have ended between a write and the next one.
        tables.next_generation()?;
        Ok(tables)
    }

    pub(super) fn read(&self) -> Result<DatapathState, DatapathError> {
        Ok(DatapathState {
            networks: collect("networks", &self.networks)?,
            flood: boxed(collect("flood", &self.flood)?),
            endpoints: collect("endpoints", &self.endpoints)?,
            endpoints6: collect("endpoints6", &self.endpoints6)?,
            addresses6: collect("addresses6", &self.addresses6)?,
            links: collect("links", &self.links)?,
            links6: collect("links6", &self.links6)?,
            peers: collect("peers", &self.peers)?,
            vteps6: collect("vteps6", &self.vteps6)?,
            services: collect("services", &self.services)?,
            slots: collect("slots", &self.slots)?,
            tables: lb_table::read_all(&self.tables)?,
            backends: collect("backends", &self.backends)?,
            published: collect("published", &self.published)?,
            local_addrs: collect("local_addrs", &self.local_addrs)?,
            local_addrs6: collect("local_addrs6", &self.local_addrs6)?,
            egress: collect("egress", &self.egress)?,
            frontends6: collect("frontends6", &self.frontends6)?,
            subnets: prefixes("subnets", &self.subnets, |prefix, ip| SubnetKey { prefix, ip })?,
            subnets6: prefixes("subnets6", &self.subnets6, |prefix, ip| Subnet6Key { prefix, ip })?,
            netns: collect("netns", &self.netns)?,
            stale_backends: collect("stale_backends", &self.stale_backends)?,
        })
    }

    pub(super) fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        let (map, outcome) = match op {
            MapOp::Network(key, value) => ("networks", set(&mut self.networks, key, value)),
            MapOp::Flood(key, value) => {
                ("flood", set(&mut self.flood, key, &value.as_deref().copied()))
            }
            MapOp::Endpoint(key, value) => ("endpoints", set(&mut self.endpoints, key, value)),
            MapOp::Endpoint6(key, value) => ("endpoints6", set(&mut self.endpoints6, key, value)),
            MapOp::Address6(key, value) => ("addresses6", set(&mut self.addresses6, key, value)),
            MapOp::Link(key, value) => ("links", set(&mut self.links, key, value)),
            MapOp::Link6(key, value) => ("links6", set(&mut self.links6, key, value)),
            MapOp::Peer(key, value) => ("peers", set(&mut self.peers, key, value)),
            MapOp::Vtep6(key, value) => ("vteps6", set(&mut self.vteps6, key, value)),
            MapOp::Service(key, value) => ("services", self.set_service(*key, value)),
            MapOp::Slot(key, value) => ("slots", set(&mut self.slots, key, value)),
            MapOp::Table(key, value) => ("lb_tables", lb_table::set(&mut self.tables, *key, value)),
            MapOp::Backend(key, value) => ("backends", self.set_backend(*key, value)),
            MapOp::Published(key, value) => ("published", set(&mut self.published, key, value)),
            MapOp::LocalAddr(key, value) => ("local_addrs", set(&mut self.local_addrs, key, value)),
            MapOp::LocalAddr6(key, value) => {
                ("local_addrs6", set(&mut self.local_addrs6, key, value))
            }
            MapOp::Egress(key, value) => ("egress", set(&mut self.egress, key, value)),
            MapOp::Frontend6(key, value) => ("frontends6", set(&mut self.frontends6, key, value)),
            MapOp::Subnet(key, value) => {
                ("subnets", set_prefix(&mut self.subnets, (key.prefix, key.ip), value))
            }
            MapOp::Subnet6(key, value) => {
                ("subnets6", set_prefix(&mut self.subnets6, (key.prefix, key.ip), value))
            }
            MapOp::Netns(key, value) => ("netns", set(&mut self.netns, key, value)),
            MapOp::StaleBackend(key, value) => {
                ("stale_backends", set(&mut self.stale_backends, key, value))
            }
        };
        outcome.map_err(|e| {
            let reason = match errno(&e) {
                Some(libc::E2BIG) => "the map is full".to_owned(),
                _ => words(&e),
            };
            kernel(format!("write {op:?} to the map {map}"), reason)
        })?;
        match op {
            MapOp::Endpoint(..) | MapOp::Link(..) => self.next_generation(),
            _ => Ok(()),
        }
    }

    /// Makes the programs drop their cached entries of `endpoints` and `links`.
    fn next_generation(&mut self) -> Result<(), DatapathError> {
        let next = self.generation.get(&0, 0).map(|generation| generation.wrapping_add(1).max(1));
        let written = next.and_then(|next| self.generation.set(0, next, 0));
        written.map_err(|e| kernel("write the map generation", words(&e)))
    }

    /// The number of its flows is there before the backend, as far as it is counted.
    fn set_backend(&mut self, number: u32, backend: &Option<Backend>) -> Result<(), MapError> {
        if !backend.is_some_and(|backend| backend.flags & BACKEND_COUNTED != 0) {
            set(&mut self.backends, &number, backend)?;
            return set(&mut self.active, &number, &None);
        }
        match self.active.insert(number, 0, NOEXIST) {
            Err(e) if errno(&e) != Some(libc::EEXIST) => return Err(e),
            _ => {}
        }
        set(&mut self.backends, &number, backend)
    }

    pub(super) fn active(&self) -> Result<BTreeMap<u32, Active>, DatapathError> {
        collect("active", &self.active)
    }

    pub(super) fn set_active(&mut self, backend: u32, flows: Active) -> Result<(), DatapathError> {
        match self.active.insert(backend, flows, EXIST) {
            // It is counted no more.
            Err(e) if errno(&e) == Some(libc::ENOENT) => Ok(()),
            outcome => outcome.map_err(|e| kernel("write the map active", words(&e))),
        }
    }

    pub(super) fn table(&self, key: TableKey) -> Result<Option<Vec<Slot>>, DatapathError> {
        lb_table::read(&self.tables, key)
    }

    /// The cursor is there before the service that uses it, and goes after it.
    fn set_service(&mut self, number: u32, service: &Option<Service>) -> Result<(), MapError> {
        if service.is_none() {
            set(&mut self.services, &number, service)?;
            return set(&mut self.rr_cursor, &number, &None);
        }
        match self.rr_cursor.insert(number, 0, NOEXIST) {
            Err(e) if errno(&e) != Some(libc::EEXIST) => return Err(e),
            _ => {}
        }
        set(&mut self.services, &number, service)
    }
}

/// The maps with the numbers of addresses outside in IPv6 flows.
const CLIENT_MAPS: [&str; 2] = ["addr6_ids", "addr6_ids_new"];

/// The maps that the programs write and the agent reads, and `config`.
pub(super) struct ProgramTables {
    conntrack: Table<ConntrackKey, Conntrack>,
    ct_new: Table<ConntrackKey, Conntrack>,
    addr6_ids: Vec<(&'static str, Table<Be32, Addr6>)>,
    counters: PerCpuArray<MapData, Counter>,
}

impl ProgramTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let addr6_ids = CLIENT_MAPS.map(|name| Ok((name, take(ebpf, name)?)));
        Ok(Self {
            addr6_ids: addr6_ids.into_iter().collect::<Result<_, DatapathError>>()?,
            conntrack: take(ebpf, "conntrack")?,
            ct_new: take(ebpf, "ct_new")?,
            counters: take(ebpf, "counters")?,
        })
    }

    pub(super) fn counters(&self) -> Result<Vec<(Reason, Counter)>, DatapathError> {
        let sum = |reason: &Reason| {
            let values = self
                .counters
                .get(&(*reason as u32), 0)
                .map_err(|e| kernel("read the map counters", words(&e)))?;
            Ok((*reason, values.iter().fold(Counter::default(), sum_of_two)))
        };
        Reason::ALL.iter().map(sum).collect()
    }

    /// Entries come and go while they are listed. When the one that the walk stands on goes, the
    /// kernel starts the walk again, so entries are told apart by their keys, and a walk that only
    /// repeats itself is given up.
    pub(super) fn conntrack(
        &self,
        limit: usize,
    ) -> Result<Vec<(ConntrackKey, Conntrack)>, DatapathError> {
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        for (name, map) in [("conntrack", &self.conntrack), ("ct_new", &self.ct_new)] {
            for entry in map.iter().take(limit.saturating_mul(4)) {
                if entries.len() == limit {
                    break;
                }
                let entry = entry.map_err(|e| kernel(format!("read the map {name}"), words(&e)))?;
                if seen.insert(entry.0) {
                    entries.push(entry);
                }
            }
        }
        Ok(entries)
    }

    /// As with conntrack, a walk that only repeats itself is given up.
    pub(super) fn addr6_ids(&self, limit: usize) -> Result<BTreeMap<Be32, Addr6>, DatapathError> {
        let mut clients = BTreeMap::new();
        for (name, map) in &self.addr6_ids {
            for entry in map.iter().take(limit.saturating_mul(4)) {
                if clients.len() == limit {
                    break;
                }
                let entry = entry.map_err(|e| kernel(format!("read the map {name}"), words(&e)))?;
                clients.insert(entry.0, entry.1);
            }
        }
        Ok(clients)
    }

    pub(super) fn addr6(&self, number: Be32) -> Result<Option<Addr6>, DatapathError> {
        for (name, map) in &self.addr6_ids {
            match map.get(&number, 0) {
                Ok(client) => return Ok(Some(client)),
                Err(e) if errno(&e) == Some(libc::ENOENT) => {}
                Err(e) => return Err(kernel(format!("read the map {name}"), words(&e))),
            }
        }
        Ok(None)
    }
}

/// The map `snat_usage`, which the programs and the agent both write.
pub(super) struct SnatUsageTable(Table<u32, SnatUsage>);

impl SnatUsageTable {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        take(ebpf, "snat_usage").map(Self)
    }

    pub(super) fn read(&self) -> Result<BTreeMap<u32, SnatUsage>, DatapathError> {
        collect("snat_usage", &self.0)
    }

    pub(super) fn set(
        &mut self,
        ifindex: u32,
        usage: Option<SnatUsage>,
    ) -> Result<(), DatapathError> {
        let written = set(&mut self.0, &ifindex, &usage);
        written.map_err(|e| kernel("write the map snat_usage", words(&e)))
    }
}

/// The map `sock_flows`, which the programs write and the agent reads and clears.
pub(super) struct SocketTable(Table<u64, SockFlow>);

impl SocketTable {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        take(ebpf, "sock_flows").map(Self)
    }

    /// As [`ProgramTables::conntrack`]: sockets come and go while they are listed.
    pub(super) fn read(&self) -> Result<BTreeMap<u64, SockFlow>, DatapathError> {
        let entries = self.0.iter().take(SOCK_FLOWS.saturating_mul(4));
        let entries = entries.collect::<Result<_, MapError>>();
        entries.map_err(|e| kernel("read the map sock_flows", words(&e)))
    }

    pub(super) fn forget(&mut self, cookie: u64) -> Result<(), DatapathError> {
        let removed = set(&mut self.0, &cookie, &None);
        removed.map_err(|e| kernel("write the map sock_flows", words(&e)))
    }
}

/// Takes the map `config`.
pub(super) fn take_config(ebpf: &mut Ebpf) -> Result<Array<MapData, Config>, DatapathError> {
    take(ebpf, "config")
}

pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<T, DatapathError> {
    let map = ebpf.take_map(name).ok_or_else(|| missing("map", name))?;
    T::try_from(map).map_err(|e| kernel(format!("open the map {name}"), words(&e)))
}

fn collect<K: Pod + Ord, V: Pod>(
    name: &str,
    map: &Table<K, V>,
) -> Result<BTreeMap<K, V>, DatapathError> {
    let entries = map.iter().collect::<Result<BTreeMap<K, V>, MapError>>();
    entries.map_err(|e| kernel(format!("read the map {name}"), words(&e)))
}

fn boxed<K: Ord, V>(map: BTreeMap<K, V>) -> BTreeMap<K, Box<V>> {
    map.into_iter().map(|(key, value)| (key, Box::new(value))).collect()
}

fn set<K: Pod, V: Pod>(map: &mut Table<K, V>, key: &K, value: &Option<V>) -> Result<(), MapError> {
    match value {
        Some(value) => map.insert(key, value, 0),
        None => match map.remove(key) {
            Err(e) if errno(&e) == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        },
    }
}

/// The entries of a trie; `key` makes its keys from the lengths and addresses of the prefixes.
fn prefixes<K: Ord, A: Pod + Ord, V: Pod>(
    name: &str,
    map: &LpmTrie<MapData, A, V>,
    key: impl Fn(u32, A) -> K,
) -> Result<BTreeMap<K, V>, DatapathError> {
    let entries = map.iter().map(|entry| {
        let (prefix, value) = entry?;
        Ok((key(prefix.prefix_len(), prefix.data()), value))
    });
    let entries: Result<_, MapError> = entries.collect();
    entries.map_err(|e| kernel(format!("read the map {name}"), words(&e)))
}

fn set_prefix<A: Pod, V: Pod>(
    map: &mut LpmTrie<MapData, A, V>,
    (prefix, ip): (u32, A),
    value: &Option<V>,
) -> Result<(), MapError> {
    let key = Key::new(prefix, ip);
    match value {
        Some(value) => map.insert(&key, value, 0),
        None => match map.remove(&key) {
            Err(e) if errno(&e) == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        },
    }
}

pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(e) => e.io_error.raw_os_error(),
        MapError::KeyNotFound => Some(libc::ENOENT),
        _ => None,
    }
}
