//! Services, their backends and published ports.

use crate::{Be16, Be32, Mac};

/// Map `services`, hash by service number (`u32`): written by the agent; read where a flow is new.
/// A number stands for one service on one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// The network of the backends.
    pub vni: u32,
    /// The VIP on that network; zero when the service has none (dnsrr, or ports only).
    pub vip: Be32,
    /// How many entries of `slots`, or of its table, the service has: 0 means no backend takes new
    /// flows.
    pub slots: u32,
    /// Which of the service's tables in `lb_tables` is in force; 0 when its backends are in `slots`.
    pub table: u32,
    /// For how many seconds after its last new flow a client keeps its backend; 0 when it does not.
    pub affinity: u32,
    /// One of `LB_*`.
    pub scheduler: u8,
    /// What [`LB_SOURCE_HASH`] and [`LB_MAGLEV`] hash: one of `LB_HASH_*`.
    pub hash: u8,
    /// Bits of `SERVICE_*`, see [`SERVICE_RESETS`].
    pub flags: u16,
    /// [`super::Conntrack::idle`] of its TCP and SCTP flows.
    pub tcp_idle: u16,
    /// [`super::Conntrack::idle`] of its UDP flows.
    pub udp_idle: u16,
}

/// In [`Service::flags`]: TCP connections whose backend has gone are reset when their client speaks.
pub const SERVICE_RESETS: u16 = 1 << 0;

/// In [`Service::flags`]: replies to clients outside leave from the backends' nodes.
pub const SERVICE_DSR: u16 = 1 << 1;

/// Round robin.
pub const LB_ROUND_ROBIN: u8 = 0;
/// Weighted round robin: round robin over a table in which a backend is as often as its weight says.
pub const LB_WEIGHTED: u8 = 1;
/// The one with fewer flows, for its weight, of two.
pub const LB_LEAST: u8 = 2;
/// By a hash, over a table as [`LB_WEIGHTED`] has it.
pub const LB_SOURCE_HASH: u8 = 3;
/// By a hash, over a Maglev table.
pub const LB_MAGLEV: u8 = 4;

/// The client's address is hashed.
pub const LB_HASH_ADDRESS: u8 = 0;
/// The client's address and port, the port it asks, and the protocol are hashed. The address that it
/// asks is not: through whichever node it comes, its backend is the same.
pub const LB_HASH_FLOW: u8 = 1;

/// Map `rr_cursor`, hash by service number (`u32`) of `u32`: how many picks were made. Created and
/// removed by the agent, advanced by the programs, and so kept apart from [`Service`].
pub type Cursor = u32;

/// Key of map `slots`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// The service's number.
    pub service: u32,
    /// 0 to [`Service::slots`] - 1.
    pub index: u32,
}

/// Map `slots`, hash of backend numbers (`u32`): the backends that take new flows, of services
/// without a table.
pub type Slot = u32;

/// Key of map `lb_tables`, a hash of arrays of [`Slot`]s: the tables of schedulers that need more than
/// a list. A table is never changed: another one is made under another key, then [`Service::table`]
/// says so, so that no flow sees half of either. Written by the agent, read where a flow is new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TableKey {
    /// The service's number.
    pub service: u32,
    /// A digest of what the table is made of; never 0.
    pub table: u32,
}

/// Map `active`, hash by backend number (`u32`) of `u32`: about how many flows a backend with
/// [`BACKEND_COUNTED`] has. Created and removed by the agent with the backend; the programs add new
/// flows and subtract those that the client ends; the agent counts what is live and corrects the
/// number.
pub type Active = u32;

/// Key of map `affinity`: a client of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// The service's number.
    pub service: u32,
    /// The network that the client is on, [`crate::UNDERLAY_VNI`] for one outside.
    pub vni: u32,
    /// The client's address.
    pub client: Be32,
}

/// Map `affinity`, LRU hash: which backend a client keeps. Written and read by the programs where a
/// flow is new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// Number of the backend.
    pub backend: u32,
    /// Padding, zero.
    pub pad: u32,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of the client's last new flow.
    pub last_used: u64,
}

/// Entries of `affinity`: clients of all services together, the least recent of which are forgotten.
pub const AFFINITY_ENTRIES: usize = 1 << 16;

/// Map `backends`, hash by backend number (`u32`): every backend that may have flows, draining
/// ones included. A number is never given twice in the life of a cluster. Written by the agent;
/// read on every packet of a translated flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Its network.
    pub vni: u32,
    /// Its address.
    pub ip: Be32,
    /// VTEP of its node; zero when it is on this one.
    pub node: Be32,
    /// Index of its host-side interface when it is on this node, otherwise 0.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: Mac,
    /// One of `BACKEND_*`.
    pub state: u16,
    /// Its slot in `endpoint_counters` when it is on this node, otherwise 0.
    pub slot: u32,
    /// Its share of new flows beside that of the service's other backends; 0: it takes none.
    pub weight: u16,
    /// Bits of `BACKEND_*`, see [`BACKEND_COUNTED`].
    pub flags: u16,
}

/// In [`Backend::flags`]: its flows are counted in `active`.
pub const BACKEND_COUNTED: u16 = 1 << 0;

/// The backend takes new flows.
pub const BACKEND_ACTIVE: u16 = 1;
/// The backend keeps its flows and takes no new ones.
pub const BACKEND_DRAINING: u16 = 2;
/// The backend's node is down: it keeps the flows that cannot do without it, and no others.
pub const BACKEND_DOWN: u16 = 3;

/// Key of map `backend_stats`: a backend, and one of the ways in which its service is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct BackendStatsKey {
    /// The service's number.
    pub service: u32,
    /// The backend's number.
    pub backend: u32,
    /// The published port; zero stands for all ports of the VIP.
    pub port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// 1 for IPv6, 0 for IPv4.
    pub ipv6: u8,
}

/// Map `backend_stats`, per-CPU hash: what went between clients and a backend, counted on the node that
/// translates it. Entries are made by the programs and removed by the agent when the backend is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct BackendStats {
    /// Flows that began.
    pub flows: u64,
    /// Packets of clients.
    pub in_packets: u64,
    /// Bytes of clients, Ethernet headers included.
    pub in_bytes: u64,
    /// Packets of the backend.
    pub out_packets: u64,
    /// Bytes of the backend, Ethernet headers included.
    pub out_bytes: u64,
}

impl BackendStats {
    /// Both together.
    #[must_use]
    pub const fn with(self, other: &Self) -> Self {
        Self {
            flows: self.flows + other.flows,
            in_packets: self.in_packets + other.in_packets,
            in_bytes: self.in_bytes + other.in_bytes,
            out_packets: self.out_packets + other.out_packets,
            out_bytes: self.out_bytes + other.out_bytes,
        }
    }
}

/// Key of map `published`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PublishedKey {
    /// The published port.
    pub port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// Padding, zero.
    pub pad: u8,
}

/// Map `published`, hash: ports of the host that a service answers. Written by the agent; read by
/// `from_underlay`, `xdp_underlay`, `from_container` (host link) and the socket programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Published {
    /// The service's number.
    pub service: u32,
    /// The backends' port.
    pub target: Be16,
    /// Bits of `PUBLISHED_*`, see [`PUBLISHED_IPV6`].
    pub flags: u16,
}

/// In [`Published::flags`]: the backends have IPv6, and the port answers on the addresses of
/// `local_addrs6`.
pub const PUBLISHED_IPV6: u16 = 1 << 0;

/// Map `local_addrs`, hash by address ([`Be32`]) of `u32`: addresses of the host on which
/// published ports answer. Written by the agent.
///
/// Map `local_addrs6`, hash by address ([`crate::Ip6`]): the same of IPv6, for ports with
/// [`PUBLISHED_IPV6`].
pub type LocalAddr = u32;

/// Key of map `frontends6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Frontend6Key {
    /// The node, as the maps call it: its VTEP, or the number of an IPv6 one.
    pub node: Be32,
    /// [`crate::hash::of_node`] of the address.
    pub number: Be32,
}

/// Map `frontends6`, hash of IPv6 addresses ([`crate::Ip6`]): those on which published ports answer on the other
/// nodes, by the numbers that these tell them by ([`crate::Frontend`]). Two of one node with the same number are
/// left out. Written by the agent; read by `tunnel_flow6`.
pub type Frontend6 = crate::Ip6;

/// Most entries of `frontends6`: sixteen addresses of each of 1,000 nodes.
pub const FRONTENDS6_ENTRIES: usize = 1 << 14;
