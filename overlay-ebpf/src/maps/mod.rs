//! The maps. Keys, values, writers and readers are described beside the types in
//! `overlay_common::maps`.

pub mod addr6_id;
pub mod cache;
pub mod endpoint;
pub mod lru;
pub mod work;

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_NO_PREALLOC},
    btf_maps::{
        Array, HashMap, HashOfMaps, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray,
        RingBuf,
    },
    macros::btf_map,
    programs::TcContext,
};
use overlay_common::{
    Be32, COUNTERS, Ip6, Plain,
    event::{EVENT_RING, Event, LOST_EVENTS_ENTRIES, Lost, Watch, Watched},
    maps::{
        ADDR6_IDS as MAX_ADDR6_IDS, ADDR6_IDS_NEW as MAX_ADDR6_IDS_NEW, AFFINITY_ENTRIES, Active,
        Addr6, Addr6Secret, Address6, Affinity, AffinityKey, BACKEND_STATS_ENTRIES, Backend,
        BackendStats, BackendStatsKey, CONNTRACK_ENTRIES, CT_NEW_ENTRIES, CachedEndpoint,
        CachedLink, CachedNextHop, Config, Conntrack, ConntrackKey, Counter, Cursor,
        ENDPOINT_CACHE_ENTRIES, Egress, Endpoint, Endpoint6Key, EndpointKey, FRAGMENT_ENTRIES,
        FRONTENDS6_ENTRIES, Flood, Fragment, FragmentKey, Frontend6, Frontend6Key, Generation,
        LARGE_TABLE, LINK_CACHE_ENTRIES, LRU_STATS_ENTRIES, Link, Link6, LocalAddr, Lru, LruStats,
        MEDIUM_TABLE, NEXT_HOPS_ENTRIES, Netns, Network, Peer, PeerKey, Published, PublishedKey,
        SMALL_TABLE, SOCK_FLOWS as MAX_SOCK_FLOWS, Service, Slot, SlotKey, SnatUsage, SockFlow,
        SockOrigin, SockOriginKey, StaleBackend, Subnet, Subnet6, TAIL_CALLS_ENTRIES, TableKey,
        Vtep6,
    },
    observe::{COUNTER_INDEXES, DROP_COUNTERS, DropKey, Tally},
};

use crate::maps::{
    lru::Counted,
    work::{Buffer, Scratch, Work},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// The unconnected UDP sockets of one host are not many more than this.
const SOCK_ORIGINS: usize = 1 << 16;

type Table<K, V, const ENTRIES: usize> = HashMap<K, V, ENTRIES, NO_PREALLOC>;

/// A table of `lb_tables`. The flag allows tables of different lengths (Linux 5.10).
type LbTable = Array<Slot, 1, { BPF_F_INNER_MAP as usize }>;

#[btf_map(name = "config")]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "next_hops")]
pub static NEXT_HOPS: PerCpuArray<CachedNextHop, NEXT_HOPS_ENTRIES> = PerCpuArray::new();

#[btf_map(name = "generation")]
pub static GENERATION: Array<Generation, 1> = Array::new();

#[btf_map(name = "endpoint_cache")]
pub static ENDPOINT_CACHE: PerCpuArray<CachedEndpoint, ENDPOINT_CACHE_ENTRIES> = PerCpuArray::new();

#[btf_map(name = "link_cache")]
pub static LINK_CACHE: PerCpuArray<CachedLink, LINK_CACHE_ENTRIES> = PerCpuArray::new();

#[btf_map(name = "networks")]
pub static NETWORKS: Table<u32, Network, MEDIUM_TABLE> = Table::new();

#[btf_map(name = "flood")]
pub static FLOOD: Table<u32, Flood, SMALL_TABLE> = Table::new();

#[btf_map(name = "endpoints")]
pub static ENDPOINTS: Table<EndpointKey, Endpoint, LARGE_TABLE> = Table::new();

#[btf_map(name = "endpoints6")]
pub static ENDPOINTS6: Table<Endpoint6Key, Endpoint, LARGE_TABLE> = Table::new();

#[btf_map(name = "addresses6")]
pub static ADDRESSES6: Table<EndpointKey, Address6, LARGE_TABLE> = Table::new();

#[btf_map(name = "links")]
pub static LINKS: Table<u32, Link, SMALL_TABLE> = Table::new();

#[btf_map(name = "links6")]
pub static LINKS6: Table<u32, Link6, SMALL_TABLE> = Table::new();

#[btf_map(name = "peers")]
pub static PEERS: Table<PeerKey, Peer, LARGE_TABLE> = Table::new();

#[btf_map(name = "vteps6")]
pub static VTEPS6: Table<Be32, Vtep6, SMALL_TABLE> = Table::new();

#[btf_map(name = "services")]
pub static SERVICES: Table<u32, Service, MEDIUM_TABLE> = Table::new();

#[btf_map(name = "rr_cursor")]
pub static RR_CURSOR: Table<u32, Cursor, MEDIUM_TABLE> = Table::new();

#[btf_map(name = "slots")]
pub static SLOTS: Table<SlotKey, Slot, LARGE_TABLE> = Table::new();

#[btf_map(name = "lb_tables")]
pub static LB_TABLES: HashOfMaps<TableKey, LbTable, MEDIUM_TABLE, NO_PREALLOC> = HashOfMaps::new();

#[btf_map(name = "active")]
pub static ACTIVE: Table<u32, Active, LARGE_TABLE> = Table::new();

#[btf_map(name = "affinity")]
static AFFINITY_MAP: LruHashMap<AffinityKey, Affinity, AFFINITY_ENTRIES> = LruHashMap::new();
pub const AFFINITY: Counted<AffinityKey, Affinity, AFFINITY_ENTRIES> =
    Counted::new(&AFFINITY_MAP, Lru::Affinity);

#[btf_map(name = "backends")]
pub static BACKENDS: Table<u32, Backend, LARGE_TABLE> = Table::new();

#[btf_map(name = "backend_stats")]
pub static BACKEND_STATS: PerCpuHashMap<
    BackendStatsKey,
    BackendStats,
    BACKEND_STATS_ENTRIES,
    NO_PREALLOC,
> = PerCpuHashMap::new();

#[btf_map(name = "published")]
pub static PUBLISHED: Table<PublishedKey, Published, MEDIUM_TABLE> = Table::new();

#[btf_map(name = "local_addrs")]
pub static LOCAL_ADDRS: Table<Be32, LocalAddr, SMALL_TABLE> = Table::new();

#[btf_map(name = "local_addrs6")]
pub static LOCAL_ADDRS6: Table<Ip6, LocalAddr, SMALL_TABLE> = Table::new();

#[btf_map(name = "frontends6")]
pub static FRONTENDS6: Table<Frontend6Key, Frontend6, FRONTENDS6_ENTRIES> = Table::new();

#[btf_map(name = "egress")]
pub static EGRESS: Table<u32, Egress, SMALL_TABLE> = Table::new();

#[btf_map(name = "subnets")]
pub static SUBNETS: LpmTrie<Be32, Subnet, MEDIUM_TABLE> = LpmTrie::new();

#[btf_map(name = "subnets6")]
pub static SUBNETS6: LpmTrie<Ip6, Subnet6, MEDIUM_TABLE> = LpmTrie::new();

#[btf_map(name = "snat_usage")]
pub static SNAT_USAGE: Table<u32, SnatUsage, SMALL_TABLE> = Table::new();

#[btf_map(name = "conntrack")]
static CONNTRACK_MAP: LruHashMap<ConntrackKey, Conntrack, CONNTRACK_ENTRIES> = LruHashMap::new();
pub const CONNTRACK: Counted<ConntrackKey, Conntrack, CONNTRACK_ENTRIES> =
    Counted::new(&CONNTRACK_MAP, Lru::Conntrack);

#[btf_map(name = "ct_new")]
static CT_NEW_MAP: LruHashMap<ConntrackKey, Conntrack, CT_NEW_ENTRIES> = LruHashMap::new();
pub const CT_NEW: Counted<ConntrackKey, Conntrack, CT_NEW_ENTRIES> =
    Counted::new(&CT_NEW_MAP, Lru::CtNew);

#[btf_map(name = "addr6_ids")]
static ADDR6_IDS_MAP: LruHashMap<Be32, Addr6, MAX_ADDR6_IDS> = LruHashMap::new();
pub const ADDR6_IDS: Counted<Be32, Addr6, MAX_ADDR6_IDS> =
    Counted::new(&ADDR6_IDS_MAP, Lru::Addr6Ids);

#[btf_map(name = "addr6_ids_new")]
static ADDR6_IDS_NEW_MAP: LruHashMap<Be32, Addr6, MAX_ADDR6_IDS_NEW> = LruHashMap::new();
pub const ADDR6_IDS_NEW: Counted<Be32, Addr6, MAX_ADDR6_IDS_NEW> =
    Counted::new(&ADDR6_IDS_NEW_MAP, Lru::Addr6IdsNew);

#[btf_map(name = "addr6_secret")]
pub static ADDR6_SECRET: Array<Addr6Secret, 1> = Array::new();

#[btf_map(name = "fragments")]
static FRAGMENTS_MAP: LruHashMap<FragmentKey, Fragment, FRAGMENT_ENTRIES> = LruHashMap::new();
pub const FRAGMENTS: Counted<FragmentKey, Fragment, FRAGMENT_ENTRIES> =
    Counted::new(&FRAGMENTS_MAP, Lru::Fragments);

#[btf_map(name = "sock_origin")]
static SOCK_ORIGIN_MAP: LruHashMap<SockOriginKey, SockOrigin, SOCK_ORIGINS> = LruHashMap::new();
pub const SOCK_ORIGIN: Counted<SockOriginKey, SockOrigin, SOCK_ORIGINS> =
    Counted::new(&SOCK_ORIGIN_MAP, Lru::SockOrigin);

#[btf_map(name = "lru_stats")]
pub static LRU_STATS: PerCpuArray<LruStats, LRU_STATS_ENTRIES> = PerCpuArray::new();

#[btf_map(name = "tail_calls")]
pub static TAIL_CALLS: ProgramArray<TAIL_CALLS_ENTRIES> = ProgramArray::new();

#[btf_map(name = "netns")]
pub static NETNS: Table<u64, Netns, SMALL_TABLE> = Table::new();

#[btf_map(name = "sock_flows")]
pub static SOCK_FLOWS: Table<u64, SockFlow, MAX_SOCK_FLOWS> = Table::new();

#[btf_map(name = "stale_backends")]
pub static STALE_BACKENDS: Table<EndpointKey, StaleBackend, MEDIUM_TABLE> = Table::new();

#[btf_map(name = "work")]
pub static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map(name = "counters")]
pub static COUNTER: PerCpuArray<Counter, COUNTERS> = PerCpuArray::new();

#[btf_map(name = "endpoint_counters")]
pub static ENDPOINT_COUNTERS: PerCpuArray<Tally, COUNTER_INDEXES> = PerCpuArray::new();

#[btf_map(name = "drop_counters")]
pub static DROP_COUNTER: PerCpuHashMap<DropKey, Counter, DROP_COUNTERS, NO_PREALLOC> =
    PerCpuHashMap::new();

#[btf_map(name = "watch")]
pub static WATCH: Array<Watch, 1> = Array::new();

#[btf_map(name = "watched")]
pub static WATCHED: Array<Watched, COUNTER_INDEXES> = Array::new();

#[btf_map(name = "events")]
pub static EVENTS: RingBuf<Event, EVENT_RING> = RingBuf::new();

#[btf_map(name = "lost_events")]
pub static LOST_EVENTS: PerCpuArray<Lost, LOST_EVENTS_ENTRIES> = PerCpuArray::new();

#[btf_map(name = "event")]
pub static EVENT: PerCpuArray<Buffer, 1> = PerCpuArray::new();

/// A copy of the value under `key`. The kernel may reuse the map entry of a removed value, so a
/// reference must not outlive the look-up. A torn copy of a value during its replacement is
/// harmless: every combination of old and new fields names things that existed.
#[inline(always)]
pub fn lookup<K: Plain, V: Plain, const ENTRIES: usize>(
    table: &Table<K, V, ENTRIES>,
    key: &K,
) -> Option<V> {
    // SAFETY: the pointer comes from a successful look-up and is read before anything else runs.
    table.get_ptr(key).map(|value| unsafe { *value })
}

/// The node's configuration.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Tail-calls another program, which finds the work area as it is. Returns only if that program is
/// missing.
#[inline(always)]
pub fn tail_call(ctx: &TcContext, program: u32) {
    // SAFETY: no value waits to be dropped, and the called programs end with a verdict as this one
    // would.
    unsafe { TAIL_CALLS.tail_call(ctx, program) };
}
