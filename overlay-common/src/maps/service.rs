//! Services, their backends and published ports.

use crate::{Be16, Be32, Mac};

/// Map `services`, hash by service number (`u32`): services, one number for one service on one
/// network. Written by the agent; read for new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// The network of the backends.
    pub vni: u32,
    /// The VIP on that network; zero for a service without one (dnsrr, or ports only).
    pub vip: Be32,
    /// Number of the service's backend slots: entries of `slots`, or of its table. 0 means that no
    /// backend takes new flows.
    pub slots: u32,
    /// Key of the service's current table in `lb_tables`; 0 if its backends are in `slots`.
    pub table: u32,
    /// Time in seconds that a client keeps its backend after its last new flow; 0 without affinity.
    pub affinity: u32,
    /// One of `LB_*`.
    pub scheduler: u8,
    /// Input of the hash of [`LB_SOURCE_HASH`] and [`LB_MAGLEV`]: one of `LB_HASH_*`.
    pub hash: u8,
    /// Bits of `SERVICE_*`, see [`SERVICE_RESETS`].
    pub flags: u16,
    /// [`super::Conntrack::idle`] of its TCP and SCTP flows.
    pub tcp_idle: u16,
    /// [`super::Conntrack::idle`] of its UDP flows.
    pub udp_idle: u16,
}

/// In [`Service::flags`]: a TCP connection whose backend is gone is reset when its client sends.
pub const SERVICE_RESETS: u16 = 1 << 0;

/// In [`Service::flags`]: direct server return. Replies to clients outside leave from the backends'
/// nodes.
pub const SERVICE_DSR: u16 = 1 << 1;

/// Round robin.
pub const LB_ROUND_ROBIN: u8 = 0;
/// Weighted round robin: round robin over a table in which each backend has as many entries as its
/// weight.
pub const LB_WEIGHTED: u8 = 1;
/// Least connections by power of two choices: the backend with fewer flows for its weight, of two.
pub const LB_LEAST: u8 = 2;
/// Source hash over a table as for [`LB_WEIGHTED`].
pub const LB_SOURCE_HASH: u8 = 3;
/// Source hash over a Maglev table.
pub const LB_MAGLEV: u8 = 4;

/// The hash covers the client's address.
pub const LB_HASH_ADDRESS: u8 = 0;
/// The hash covers the client's address and port, the frontend's port and the protocol. It leaves
/// out the frontend's address, so that a client has the same backend through every node.
pub const LB_HASH_FLOW: u8 = 1;

/// Map `rr_cursor`, hash by service number (`u32`) of `u32`: number of picks. Created and removed
/// by the agent; advanced by the programs, and therefore separate from [`Service`].
pub type Cursor = u32;

/// Key of map `slots`: a backend slot of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// The service's number.
    pub service: u32,
    /// 0 to [`Service::slots`] - 1.
    pub index: u32,
}

/// Map `slots`, hash of backend numbers (`u32`): backend slots, which hold the backends that take
/// new flows, of services without a table. Written by the agent; read for new flows.
pub type Slot = u32;

/// Key of map `lb_tables`, a hash of arrays of [`Slot`]s: backend slots of services whose scheduler
/// needs a table. A table never changes. The agent makes another one under a new key and then sets
/// [`Service::table`], so that a flow sees the old table or the new one, never a mixture. Written
/// by the agent; read for new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TableKey {
    /// The service's number.
    pub service: u32,
    /// A digest of the table's input; never 0.
    pub table: u32,
}

/// Map `active`, hash by backend number (`u32`) of `u32`: approximate number of flows of a backend
/// with [`BACKEND_COUNTED`]. Created and removed by the agent with the backend. The programs add
/// new flows and subtract those that the client ends; the agent counts the live ones and corrects
/// the number.
pub type Active = u32;

/// Key of map `affinity`: a client of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// The service's number.
    pub service: u32,
    /// The client's network; [`crate::UNDERLAY_VNI`] for a client outside.
    pub vni: u32,
    /// The client's address.
    pub client: Be32,
}

/// Map `affinity`, LRU hash: the backend that a client keeps. Written and read by the programs for
/// new flows.
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

/// Entries of `affinity`: clients of all services together. A full map evicts the least recently
/// used ones.
pub const AFFINITY_ENTRIES: usize = 1 << 16;

/// Map `backends`, hash by backend number (`u32`): all backends that may have flows, draining ones
/// included. A cluster never reuses a number. Written by the agent; read on every packet of a
/// translated flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Its network.
    pub vni: u32,
    /// Its address.
    pub ip: Be32,
    /// VTEP of its node; zero for a backend on this node.
    pub node: Be32,
    /// Index of its host-side interface if it is on this node, otherwise 0.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: Mac,
    /// One of `BACKEND_*`.
    pub state: u16,
    /// Its index in `endpoint_counters` if it is on this node, otherwise 0.
    pub counter: u32,
    /// Its weight, relative to the service's other backends. With 0 it takes no new flows.
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
/// The backend's node is down. It keeps flows that have no alternative, and no others.
pub const BACKEND_DOWN: u16 = 3;

/// Key of map `backend_stats`: a backend, and a frontend port and protocol of its service.
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

/// Map `backend_stats`, per-CPU hash: traffic between clients and a backend, counted on the node
/// that translates it. Entries are made by the programs and removed by the agent after the backend
/// is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct BackendStats {
    /// New flows.
    pub flows: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Bytes from clients, Ethernet headers included.
    pub in_bytes: u64,
    /// Packets from the backend.
    pub out_packets: u64,
    /// Bytes from the backend, Ethernet headers included.
    pub out_bytes: u64,
}

impl BackendStats {
    /// The sum of both.
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

/// Map `published`, hash: published ports of the host. Written by the agent; read by
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

/// In [`Published::flags`]: the backends have IPv6, and the port is published on the addresses of
/// `local_addrs6` too.
pub const PUBLISHED_IPV6: u16 = 1 << 0;

/// Map `local_addrs`, hash by address ([`Be32`]) of `u32`: addresses of the host on which ports are
/// published. Written by the agent.
///
/// Map `local_addrs6`, hash by address ([`crate::Ip6`]): IPv6 addresses of the host on which ports
/// with [`PUBLISHED_IPV6`] are published. Written by the agent.
pub type LocalAddr = u32;

/// Key of map `frontends6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Frontend6Key {
    /// The node: its VTEP, or its number on an IPv6 underlay.
    pub node: Be32,
    /// [`crate::hash::of_node`] of the frontend's address.
    pub number: Be32,
}

/// Map `frontends6`, hash of IPv6 addresses ([`crate::Ip6`]): frontend addresses of the other
/// nodes, by the number that packets carry for them ([`crate::Frontend`]). If two addresses of a
/// node have the same number, the map has neither. Written by the agent; read by `tunnel_flow6`.
pub type Frontend6 = crate::Ip6;

/// Most entries of `frontends6`: sixteen addresses of each of 1,000 nodes.
pub const FRONTENDS6_ENTRIES: usize = 1 << 14;
