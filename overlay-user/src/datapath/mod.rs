//! The kernel's half as the controller sees it: a set of tables and the places where programs are
//! attached. The real one speaks to BPF through aya, the other one is a few maps in memory.

pub mod bpf;
pub mod host;
mod lb_table;
mod memory;
mod observe;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

pub use bpf::{
    BpfDatapath, LoadOptions, OBJECT, TAIL_CALLED, UNDERLAY_IPV6, decap_flags, load_program,
    set_table, set_tail_calls,
};
pub use lb_table::{Filling, LbTable, MAX_TURNS};
pub use memory::{DatapathCall, MemoryDatapath};
pub use observe::{Breakdown, Fill};
use overlay_common::{
    Be32,
    event::{EVENT_KINDS, Watch},
    maps,
};
pub use state::{DatapathState, MapOp, diff};

use crate::link::UnderlayFacts;

/// XDP mode of the underlay interface.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native on physical NICs, off on veth (where it would turn off the peer's TSO).
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the stack, on any interface; slower than TC.
    Generic,
    /// TC does everything.
    Off,
}

impl XdpMode {
    /// The flags of [`maps::Config::flags`] that allow `xdp_underlay` its work in this mode.
    pub fn flags(self, underlay: &UnderlayFacts) -> u32 {
        let may_decapsulate = match self {
            Self::Generic => true,
            Self::Native | Self::Auto => underlay.checksums,
            Self::Off => false,
        };
        if may_decapsulate { maps::CONFIG_XDP_DECAP } else { 0 }
    }
}

/// Why the datapath refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The host lacks something.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// The missing feature.
        what: String,
        /// The remedy.
        remedy: String,
    },
    /// Loading, pinning or attaching failed.
    #[error("{action}: {reason}")]
    Kernel {
        /// The operation that failed.
        action: String,
        /// The kernel's error.
        reason: String,
    },
    /// A pin holds something of another layout.
    #[error(
        "the pin {path} is not of this version: {reason}; run `overlay datapath unload` and try \
             again"
    )]
    Pin {
        /// Which pin.
        path: String,
        /// The problem.
        reason: String,
    },
}

/// One table row of the live tables.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tables {
    /// The tables that the agent fills.
    pub state: Vec<TableDump>,
    /// Conntrack entries, newest first, at most 10,000.
    pub conntrack: Vec<ConntrackRow>,
    /// Services as IPVS shows its own.
    #[serde(default)]
    pub virtual_servers: Vec<VirtualServer>,
    /// Counters.
    pub counters: Vec<crate::api::CounterRow>,
    /// Counters of endpoints and networks, those that are not zero.
    pub traffic: Vec<crate::api::TrafficRow>,
}

/// One table in words.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TableDump {
    /// Name of the map.
    pub name: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: Vec<Vec<String>>,
}

/// One conntrack entry in words.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ConntrackRow {
    /// tcp, udp or icmp.
    pub protocol: String,
    /// Whether it is a flow of IPv6.
    #[serde(default)]
    pub ipv6: bool,
    /// VNI the packet is seen on, 0 for the underlay.
    pub vni: u32,
    /// Source as seen on the wire. If the IPv6 address is no longer known, this is its address id,
    /// written as an IPv4 address. The same holds for the addresses below.
    pub source: std::net::SocketAddr,
    /// Destination as seen.
    pub destination: std::net::SocketAddr,
    /// forward, reply, return, masquerade or unmasquerade.
    pub action: String,
    /// Source after translation.
    pub new_source: std::net::SocketAddr,
    /// Destination after translation.
    pub new_destination: std::net::SocketAddr,
    /// VNI after translation.
    pub new_vni: u32,
    /// Service number.
    pub service: u32,
    /// Backend number.
    pub backend: u32,
    /// Node the flow came through.
    pub node: Option<std::net::IpAddr>,
    /// TCP flags seen: S, A, F, R, and f: a FIN of the other direction; A also of UDP that was
    /// answered. D: replies go straight to the client.
    pub state: String,
    /// Milliseconds since the last packet in this direction.
    pub idle_ms: u64,
}

/// A service as it is asked in one way, with its backends.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VirtualServer {
    /// tcp or udp.
    pub protocol: String,
    /// The VIP; 0.0.0.0 or :: for a published port, which answers on the host's addresses.
    pub address: std::net::IpAddr,
    /// The published port; 0 for all ports of a VIP.
    pub port: u16,
    /// Name of the service.
    pub service: String,
    /// rr, wrr, lc, sh or maglev.
    pub scheduler: String,
    /// For how many seconds a client keeps its backend; 0 when it does not.
    pub persistent_secs: u32,
    /// Its backends.
    pub backends: Vec<RealServer>,
}

/// A backend of a [`VirtualServer`], with its live connections through this node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RealServer {
    /// Its address, of the family of the virtual server's.
    pub address: std::net::IpAddr,
    /// Its port; 0 for the one that was asked.
    pub port: u16,
    /// Name of the container.
    pub name: String,
    /// Name of its node.
    pub node: String,
    /// `Masq` on this node, `Tunnel` on another one.
    pub forward: String,
    /// Its weight; 0 when it takes no new flows.
    pub weight: u16,
    /// active, draining, or down with its node.
    pub state: String,
    /// Established TCP connections.
    pub active: u64,
    /// Other flows: TCP that opens or closes, UDP.
    pub inactive: u64,
    /// Those of both that it still has while it drains.
    pub drained: u64,
    /// Traffic through this node since it became a backend here.
    #[serde(default)]
    pub stats: ServerStats,
}

/// Traffic between clients and a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServerStats {
    /// Flows that began.
    pub connections: u64,
    /// Packets of clients.
    pub in_packets: u64,
    /// Packets of the backend.
    pub out_packets: u64,
    /// Bytes of clients, Ethernet headers included.
    pub in_bytes: u64,
    /// Bytes of the backend, Ethernet headers included.
    pub out_bytes: u64,
}

/// The datapath of one host. Every method is an idempotent *set*: calling it again changes
/// nothing. A new process adopts the pins that an earlier one left.
pub trait Datapath: Send + Sync + 'static {
    /// Sets the programs' configuration of the node. This call fills in the flags that depend on
    /// the kernel ([`maps::Config::decap_flags`]).
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be written.
    fn set_config(&self, config: &maps::Config) -> Result<(), DatapathError>;

    /// Reads the contents of the agent's maps.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be read.
    fn read(&self) -> Result<DatapathState, DatapathError>;

    /// Applies operations in their order. Stops at the first that fails.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the operation that failed.
    fn apply(&self, ops: &[MapOp]) -> Result<(), DatapathError>;

    /// Attaches `from_container` to the ingress of a host-side interface.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the interface.
    fn attach_container(&self, iface: &str) -> Result<(), DatapathError>;

    /// Attaches `from_underlay` or `from_underlay6`, and `xdp_underlay` as `xdp` says, to the
    /// underlay. Returns the XDP mode in force.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the interface and, for XDP, the mode.
    fn attach_underlay(&self, iface: &str, xdp: XdpMode) -> Result<XdpMode, DatapathError>;

    /// Attaches `from_vxlan` to the kernel's vxlan device.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the interface.
    fn attach_vxlan(&self, iface: &str) -> Result<(), DatapathError>;

    /// Attaches `from_outside` to an interface with a way out that is not the underlay's.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the interface.
    fn attach_outside(&self, iface: &str) -> Result<(), DatapathError>;

    /// Attaches the socket programs to a cgroup v2 directory.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the directory.
    fn attach_sockets(&self, cgroup: &Path) -> Result<(), DatapathError>;

    /// Forgets the attachment to an interface that is gone or goes.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the pin cannot be removed.
    fn detach(&self, iface: &str) -> Result<(), DatapathError>;

    /// Interfaces with a pinned attachment.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the pins cannot be listed.
    fn attachments(&self) -> Result<Vec<String>, DatapathError>;

    /// Sums of the counters, by [`overlay_common::Reason`].
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn counters(&self) -> Result<Vec<(overlay_common::Reason, maps::Counter)>, DatapathError>;

    /// How full the maps are that forget the least recent entries, and how many they have
    /// forgotten. A full conntrack of the usual size takes some tenths of a second to be counted.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be read.
    fn fills(&self) -> Result<BTreeMap<maps::Lru, Fill>, DatapathError>;

    /// Reads the counters of the endpoints with these slots, and all drops.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be read.
    fn breakdown(&self, slots: &BTreeSet<u32>) -> Result<Breakdown, DatapathError>;

    /// Resets the counters of the endpoints with these slots, and the drops of these networks that
    /// belong to no endpoint.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be written.
    fn forget(&self, slots: &BTreeSet<u32>, networks: &BTreeSet<u32>) -> Result<(), DatapathError>;

    /// Sets the events that the programs report, and the slots of the endpoints to capture.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be written.
    fn set_watch(&self, watch: &Watch, slots: &BTreeSet<u32>) -> Result<(), DatapathError>;

    /// Waits up to `within` for events of the programs and returns some records
    /// ([`overlay_common::event`]). Only one thread may call it at a time.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when it cannot wait.
    fn read_events(
        &self,
        within: Duration,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DatapathError>;

    /// How many records were lost ever, by kind.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn lost_events(&self) -> Result<[u64; EVENT_KINDS], DatapathError>;

    /// Up to `limit` conntrack entries in no order.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn conntrack(
        &self,
        limit: usize,
    ) -> Result<Vec<(maps::ConntrackKey, maps::Conntrack)>, DatapathError>;

    /// Up to `limit` addresses outside that have numbers in IPv6 flows, by number.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be read.
    fn addr6_ids(&self, limit: usize) -> Result<BTreeMap<Be32, maps::Addr6>, DatapathError>;

    /// The address outside that has a number in IPv6 flows; `None` when none has it any more.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when a map cannot be read.
    fn addr6(&self, number: Be32) -> Result<Option<maps::Addr6>, DatapathError>;

    /// How many flows to the outside endpoints have, by interface index.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn snat_usage(&self) -> Result<BTreeMap<u32, maps::SnatUsage>, DatapathError>;

    /// Corrects or, with `None`, forgets the number of an endpoint's flows to the outside.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be written.
    fn set_snat_usage(
        &self,
        ifindex: u32,
        usage: Option<maps::SnatUsage>,
    ) -> Result<(), DatapathError>;

    /// About how many flows counted backends have, by number.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn active(&self) -> Result<BTreeMap<u32, maps::Active>, DatapathError>;

    /// Corrects the number of flows of a backend; one that is not counted is left alone.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be written.
    fn set_active(&self, backend: u32, flows: maps::Active) -> Result<(), DatapathError>;

    /// Reads the traffic between clients and backends, by backend and by the way in which clients
    /// reach its service.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn backend_stats(
        &self,
    ) -> Result<BTreeMap<maps::BackendStatsKey, maps::BackendStats>, DatapathError>;

    /// Removes the counters of these backends.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be written.
    fn forget_backend_stats(&self, backends: &BTreeSet<u32>) -> Result<(), DatapathError>;

    /// Sockets that are connected to something else than they asked for, by their cookies.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn sockets(&self) -> Result<BTreeMap<u64, maps::SockFlow>, DatapathError>;

    /// Forgets a socket that is no more.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be written.
    fn forget_socket(&self, cookie: u64) -> Result<(), DatapathError>;

    /// The entries of a table: backend numbers. `None` when there is no such table.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] when the map cannot be read.
    fn table(&self, key: maps::TableKey) -> Result<Option<Vec<maps::Slot>>, DatapathError>;

    /// How TC programs are attached: `tcx` or `clsact`.
    fn tc_flavour(&self) -> &'static str;
}
