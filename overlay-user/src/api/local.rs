//! Calls to the agent on its own host, over its unix socket.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::model::{EndpointState, Id, Port, Role};

/// A call to the agent of this host, over the unix socket only. The path is `/v1/local/METHOD`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case", deny_unknown_fields)]
pub enum LocalRequest {
    /// Answer: [`Status`].
    Status {},
    /// Makes endpoints for a network namespace. Answer: [`Attached`].
    Attach(Attach),
    /// Drains (unless `force`), unwires and removes a container's endpoints. Answer: list of the
    /// removed endpoints.
    Detach(Detach),
    /// Takes a container's backends out of load balancing on every node. Waits until every node has
    /// applied this and the drain time is over. Answer: [`Drained`].
    Drain(ContainerByName),
    /// Answer: list of [`LocalContainer`].
    Containers {},
    /// Answer: the live tables of the datapath, [`crate::datapath::Tables`].
    Tables {},
    /// Removes this node from the cluster, removes all of its objects from the kernel, and then
    /// stops the daemon. Answer: [`Left`].
    Leave(Leave),
}

/// Parameters of `attach`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attach {
    /// Path of the network namespace, such as `/run/netns/web` or `/proc/4711/ns/net`.
    pub netns: String,
    /// Name of the container; `None` generates one.
    pub name: Option<String>,
    /// Networks by name or id. Empty: the service's networks.
    pub networks: Vec<String>,
    /// A fixed address; only with exactly one network.
    pub ip: Option<Ipv4Addr>,
    /// A fixed IPv6 address; only with exactly one network, which must be dual-stack.
    pub ip6: Option<Ipv6Addr>,
    /// Further names.
    pub aliases: Vec<String>,
    /// The service that it is a backend of.
    pub service: Option<String>,
    /// Its share of the service's new flows; `None`: 1.
    pub weight: Option<u16>,
    /// Ports published for this container alone.
    pub ports: Vec<Port>,
    /// Process of the container. When it ends, the agent removes the container's endpoints.
    pub pid: Option<u32>,
    /// Prefix of the interfaces' names: `eth` gives eth0, eth1, ….
    pub interface_prefix: Option<String>,
    /// Leaves the endpoints `starting` until the caller changes that or one of their published
    /// ports listens.
    pub wait_listen: bool,
}

/// Answer to `attach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// The container.
    pub container: Id,
    /// Its name.
    pub name: String,
    /// Its interfaces in the order of the networks.
    pub interfaces: Vec<AttachedInterface>,
    /// Ports published for it alone, with the automatically chosen ports.
    pub ports: Vec<Port>,
}

/// One interface of an attached namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachedInterface {
    /// Name of the interface inside the namespace.
    pub interface: String,
    /// Name of the network.
    pub network: String,
    /// Address and prefix length.
    pub address: Ipv4Net,
    /// MAC address.
    pub mac: String,
    /// Gateway; `None` on internal networks, where there is no default route.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 address and prefix length, on dual-stack networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Net>,
    /// IPv6 gateway; `None` on internal networks and on IPv4-only ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// MTU.
    pub mtu: u32,
    /// The endpoint's id.
    pub endpoint: Id,
}

impl AttachedInterface {
    /// Returns its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ip6 = self.address6.map(|address| IpAddr::V6(address.addr()));
        std::iter::once(IpAddr::V4(self.address.addr())).chain(ip6)
    }
}

/// A container of this host, by name or id.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerByName {
    /// Name, id or beginning of an id of the container.
    pub container: String,
}

/// Parameters of `detach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Name, id or beginning of an id of the container.
    pub container: String,
    /// Skips the drain.
    #[serde(default)]
    pub force: bool,
}

/// Answer to `drain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drained {
    /// Names of the nodes that had not confirmed by the end of the wait.
    pub lagging: Vec<String>,
    /// How long the flows had to end after every node had confirmed, in milliseconds.
    pub drained_ms: u64,
}

/// A container attached on this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocalContainer {
    /// The container.
    pub container: Id,
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: String,
    /// Process of the container. When it ends, the container ends.
    pub pid: Option<u32>,
    /// The service that it is a backend of.
    pub service: Option<String>,
    /// State.
    pub state: EndpointState,
    /// Interfaces.
    pub interfaces: Vec<AttachedInterface>,
}

/// Answer to `status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// This node.
    pub node: Id,
    /// Its name.
    pub name: String,
    /// Manager or agent.
    pub role: Role,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
    /// Underlay interface.
    pub iface: String,
    /// Its MTU.
    pub underlay_mtu: u32,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// XDP mode in use: native, generic or off.
    pub xdp: String,
    /// How the TC programs are attached: tcx or clsact.
    pub tc: String,
    /// Whether published ports answer on localhost (needs cgroup v2); otherwise the reason why not.
    pub socket_programs: Result<(), String>,
    /// Whether a container's connection to a VIP gets its backend when it is made, if the socket
    /// programs are attached. Otherwise each packet is translated.
    #[serde(default)]
    pub socket_lb: bool,
    /// Whether the managers are reachable.
    pub connected: bool,
    /// The manager that it follows.
    pub manager: Option<SocketAddr>,
    /// Latest revision that it has received.
    pub revision: u64,
    /// Revision that the maps show.
    pub applied: u64,
    /// Last error of reconciliation, until reconciliation succeeds.
    pub last_error: Option<String>,
    /// Directory of the pinned BPF objects.
    pub pin_dir: String,
    /// Entries per map.
    pub entries: BTreeMap<String, u64>,
    /// How full the LRU maps are. They evict the least recently used entry to make room.
    #[serde(default)]
    pub fills: Vec<FillRow>,
    /// Counters by reason, without those that are zero.
    pub counters: Vec<CounterRow>,
}

/// Fill level of a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FillRow {
    /// Name of the map.
    pub map: String,
    /// Number of entries, including expired ones.
    pub entries: u64,
    /// Capacity in entries.
    pub room: u64,
    /// Number of entries evicted to make room since the datapath was loaded, including expired
    /// ones.
    pub evicted: u64,
    /// Description of its entries.
    pub description: String,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CounterRow {
    /// Name of the reason.
    pub reason: String,
    /// `forward` or `drop`.
    pub direction: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Description of the reason.
    pub description: String,
}

/// Parameters of `leave`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// Leave even if containers are attached or this is the last manager.
    #[serde(default)]
    pub force: bool,
}

/// Answer to `leave`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left {
    /// The removed objects.
    pub removed: Vec<String>,
}
