//! The cluster's state: managers store it, agents watch it, and `compile` converts it to map
//! entries.
//!
//! Every object has a readable JSON form and a key `KIND/ID` under the store's prefix. Secrets (the
//! CA's key, join tokens) are not part of this state, so agents never see them.

mod addresses;
mod balance;
mod change;
pub mod duration;
mod health;
mod name;
mod port;
mod standing;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

pub use addresses::{MAX_ADDRESSES6, is_reachable6, reachable6};
pub use balance::{
    Balance, BalanceChange, BalanceInspect, DEFAULT_WEIGHT, HashBy, InvalidBalance, OnLoss,
    ReturnPath, Scheduler,
};
pub use change::{Change, Kind, Object, WatchEvent};
pub use health::{Health, HealthCheck, Probe};
use ipnet::{Ipv4Net, Ipv6Net};
use jiff::Timestamp;
pub use name::{InvalidName, check_name};
use overlay_common::{Be32, hash};
pub use port::{Port, PortParseError, Protocol, PublishMode};
use serde::{Deserialize, Serialize};
pub use standing::Standing;

/// A random identifier: 25 lower-case letters and digits, like Docker's swarm objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    /// Makes a new random identifier (129 bits).
    pub fn random() -> Self {
        use rand::RngExt as _;
        const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut rng = rand::rng();
        Self((0..25).map(|_| char::from(ALPHABET[rng.random_range(0..36)])).collect())
    }

    /// Wraps a text that is already an identifier.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 characters, as in listings.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The whole state of a cluster at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Revision of the store. It grows by one with every write.
    pub revision: u64,
    /// The cluster itself; `None` only in an empty store.
    pub cluster: Option<Cluster>,
    /// Networks by id.
    pub networks: BTreeMap<Id, Network>,
    /// Nodes by id.
    pub nodes: BTreeMap<Id, Node>,
    /// Services by id.
    pub services: BTreeMap<Id, Service>,
    /// Endpoints by id.
    pub endpoints: BTreeMap<Id, Endpoint>,
}

/// Settings of the whole cluster, and counters that must never decrease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identifier.
    pub id: Id,
    /// When it was made.
    pub created: Timestamp,
    /// Pool that networks without a `--subnet` take theirs from.
    pub default_pool: Ipv4Net,
    /// Prefix length of such subnets.
    pub pool_prefix: u8,
    /// UDP port of VXLAN on every node.
    pub data_path_port: u16,
    /// Next VNI to allocate.
    pub next_vni: u32,
    /// Next number for services and backends in the maps; never reused.
    pub next_number: u32,
    /// A node is down after this silence. Milliseconds.
    pub node_timeout_ms: u64,
}

/// Kind of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Spans the nodes over VXLAN.
    Overlay,
    /// Local to each node: it has the same subnet on every node, and the nodes share nothing.
    Bridge,
}

/// How a network handles multicast and broadcast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Multicast {
    /// Drops and counts them.
    #[default]
    Drop,
    /// Copies them to all endpoints (head-end replication), up to
    /// [`overlay_common::maps::MAX_FLOOD`].
    Replicate,
}

/// An overlay network, or the node-local `bridge`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Identifier.
    pub id: Id,
    /// Name, unique among networks.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Kind of the network.
    pub driver: Driver,
    /// VXLAN network identifier, 24 bits, unique.
    pub vni: u32,
    /// The subnet. It does not overlap another network's.
    pub subnet: Ipv4Net,
    /// Addresses are allocated from here only.
    pub ip_range: Option<Ipv4Net>,
    /// The gateway: an anycast address on every node.
    pub gateway: Ipv4Addr,
    /// Addresses that are never allocated, by name.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// MTU of the containers' interfaces; `None` means the underlay's less 50.
    pub mtu: Option<u32>,
    /// How multicast and broadcast are handled.
    #[serde(default)]
    pub multicast: Multicast,
    /// Whether it has no egress and no published ports.
    pub internal: bool,
    /// Whether standalone containers may join (`overlay run` without `--service`).
    pub attachable: bool,
    /// Whether it is the ingress network, which carries published ports for services without a
    /// network.
    pub ingress: bool,
    /// Labels from `--label`.
    pub labels: BTreeMap<String, String>,
    /// Options from `--opt`, except those that have their own field.
    pub options: BTreeMap<String, String>,
    /// Start of the next search for a free address, so that a freed one is not reused at once.
    pub next_address: Ipv4Addr,
    /// Its IPv6 side; `None` for IPv4-only networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NetworkIpv6>,
}

/// The IPv6 side of a dual-stack network. Every endpoint has an address of each family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkIpv6 {
    /// The subnet. It does not overlap another network's.
    pub subnet: Ipv6Net,
    /// The gateway: an anycast address on every node.
    pub gateway: Ipv6Addr,
    /// Start of the next search for a free address.
    pub next_address: Ipv6Addr,
}

impl Network {
    /// Returns true for `bridge`. Its state never leaves the node.
    pub fn is_local(&self) -> bool {
        self.driver == Driver::Bridge
    }
}

/// Role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns the cluster's state, and runs an agent.
    Manager,
    /// Programs only its own kernel.
    Agent,
}

/// Whether a node's agent reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// The agent reports.
    Ready,
    /// The agent has been silent for longer than the cluster's node timeout.
    Down,
}

/// Whether a node's backends take new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// They take new flows.
    Active,
    /// They keep their flows but take no new ones.
    Drain,
}

/// A host of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Identifier; the subject of the node's certificate.
    pub id: Id,
    /// Host name, unique among nodes.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// When it joined.
    pub created: Timestamp,
    /// Its VTEP: unique among the nodes, and of the same family on all of them.
    pub data_path_addr: IpAddr,
    /// Address on which its manager listens (managers only).
    pub api_addr: Option<SocketAddr>,
    /// Its own address on the ingress network; 0.0.0.0 if there is no such network.
    pub ingress_ip: Ipv4Addr,
    /// Whether its agent reports.
    pub state: NodeState,
    /// Whether its backends take new flows.
    pub availability: Availability,
    /// IPv6 addresses on which it answers published ports, as its agent reports them: sorted, at
    /// most [`MAX_ADDRESSES6`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses6: Vec<Ipv6Addr>,
}

impl Node {
    /// Returns the node's key in the maps: see [`vtep`].
    pub fn vtep(&self) -> Be32 {
        vtep(self.data_path_addr)
    }
}

/// Returns the key in the maps of a node with this VTEP: the address itself, or a number for an
/// IPv6 address.
pub fn vtep(address: IpAddr) -> Be32 {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => hash::of_node(&address.into()),
    }
}

/// How a service's name resolves for its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// The name resolves to a virtual IP.
    #[default]
    Vip,
    /// The name resolves to the backends' addresses in random order.
    Dnsrr,
}

/// A service on one of its networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// The network.
    pub network: Id,
    /// The VIP; `None` for dnsrr and for services that only carry an endpoint's published ports.
    pub vip: Option<Ipv4Addr>,
    /// The IPv6 VIP, beside the IPv4 one on dual-stack networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip6: Option<Ipv6Addr>,
    /// Its number in the maps.
    pub number: u32,
}

/// A name with a VIP per network, published ports and backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Identifier.
    pub id: Id,
    /// Name, unique among services.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// How its name resolves.
    pub mode: EndpointMode,
    /// Its networks; published ports go to the backends on the first one.
    pub networks: Vec<ServiceNetwork>,
    /// Its published ports. Each has its published port set.
    pub ports: Vec<Port>,
    /// How new flows are distributed among its backends.
    #[serde(default)]
    pub balance: Balance,
    /// How its backends are checked; `None` if they are not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<HealthCheck>>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// How long a draining backend keeps its flows, in milliseconds.
    pub drain_ms: u64,
    /// The endpoint with the ports from `overlay run -p` that this service carries, if it carries
    /// only those. The service is removed with the endpoint.
    pub owner: Option<Id>,
}

/// Life cycle of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// It has an address. Its node is still wiring it, or its service does not listen yet.
    Starting,
    /// It takes new flows.
    Running,
    /// It keeps its flows but takes no new ones.
    Draining,
}

/// One interface of one container on one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Identifier.
    pub id: Id,
    /// Its number in the maps (as a backend); never reused.
    pub number: u32,
    /// Name of the container. It is unique on the network and resolves there.
    pub name: String,
    /// The container. Endpoints of the same container share a network namespace.
    pub container: Id,
    /// The network.
    pub network: Id,
    /// The node.
    pub node: Id,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address, on dual-stack networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// Further names that resolve to it on this network.
    pub aliases: Vec<String>,
    /// The service it is a backend of.
    pub service: Option<Id>,
    /// Weight: its share of the service's new flows, relative to other backends. With 0 it takes
    /// none.
    #[serde(
        default = "balance::default_weight",
        skip_serializing_if = "balance::is_default_weight"
    )]
    pub weight: u16,
    /// State in its life cycle.
    pub state: EndpointState,
    /// Result of its service's health checks.
    #[serde(default, skip_serializing_if = "Health::is_unknown")]
    pub health: Health,
    /// When it was made.
    pub created: Timestamp,
}

impl ClusterState {
    /// Returns the network with this name, id or unambiguous beginning of an id (at least 4
    /// characters).
    pub fn network(&self, reference: &str) -> Option<&Network> {
        find(&self.networks, reference, |n| &n.name)
    }

    /// Returns the service with this name, id or beginning of an id.
    pub fn service(&self, reference: &str) -> Option<&Service> {
        find(&self.services, reference, |s| &s.name)
    }

    /// Returns the node with this name, id or beginning of an id.
    pub fn node(&self, reference: &str) -> Option<&Node> {
        find(&self.nodes, reference, |n| &n.name)
    }

    /// Returns the network that carries published ports.
    pub fn ingress(&self) -> Option<&Network> {
        self.networks.values().find(|n| n.ingress)
    }

    /// Returns the endpoints of a network, in the order of their ids.
    pub fn endpoints_of<'a>(&'a self, network: &'a Id) -> impl Iterator<Item = &'a Endpoint> + 'a {
        self.endpoints.values().filter(move |e| e.network == *network)
    }

    /// Returns the endpoints of a service on a network.
    pub fn backends_of<'a>(
        &'a self,
        service: &'a Id,
        network: &'a Id,
    ) -> impl Iterator<Item = &'a Endpoint> + 'a {
        self.endpoints_of(network).filter(move |e| e.service.as_ref() == Some(service))
    }

    /// Applies one change. The caller sets the revision.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(Object::Cluster(cluster)) => self.cluster = Some(cluster),
            Change::Put(Object::Network(n)) => drop(self.networks.insert(n.id.clone(), n)),
            Change::Put(Object::Node(n)) => drop(self.nodes.insert(n.id.clone(), n)),
            Change::Put(Object::Service(s)) => drop(self.services.insert(s.id.clone(), s)),
            Change::Put(Object::Endpoint(e)) => drop(self.endpoints.insert(e.id.clone(), e)),
            Change::Delete { kind, id } => match kind {
                Kind::Cluster => self.cluster = None,
                Kind::Network => drop(self.networks.remove(&id)),
                Kind::Node => drop(self.nodes.remove(&id)),
                Kind::Service => drop(self.services.remove(&id)),
                Kind::Endpoint => drop(self.endpoints.remove(&id)),
            },
        }
    }
}

fn find<'a, T>(
    objects: &'a BTreeMap<Id, T>,
    reference: &str,
    name: impl Fn(&T) -> &String,
) -> Option<&'a T> {
    if let Some(object) = objects.get(&Id::from_text(reference)) {
        return Some(object);
    }
    if let Some(object) = objects.values().find(|o| name(o) == reference) {
        return Some(object);
    }
    if reference.len() < 4 {
        return None;
    }
    let mut matches = objects.iter().filter(|(id, _)| id.as_str().starts_with(reference));
    match (matches.next(), matches.next()) {
        (Some((_, object)), None) => Some(object),
        _ => None,
    }
}
