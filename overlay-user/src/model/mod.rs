//! The cluster's state: what managers store, agents watch and `compile` turns into map entries.
//!
//! Every object has a readable JSON form and a key `KIND/ID` under the store's prefix. Secrets
//! (the CA's key, join tokens) are not part of this state: agents never see them.

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

/// A random identifier: 25 lower-case letters and digits, as Docker's swarm objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    /// A new random identifier (129 bits).
    pub fn random() -> Self {
        use rand::RngExt as _;
        const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut rng = rand::rng();
        Self((0..25).map(|_| char::from(ALPHABET[rng.random_range(0..36)])).collect())
    }

    /// From text that is one already.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 characters, as listings show.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything about a cluster at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Revision of the store: grows by one with every write.
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

/// Settings of the whole cluster and the counters that must never go back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identifier.
    pub id: Id,
    /// When it was made.
    pub created: Timestamp,
    /// Networks without a `--subnet` get theirs from here.
    pub default_pool: Ipv4Net,
    /// Prefix length of such subnets.
    pub pool_prefix: u8,
    /// UDP port of VXLAN on every node.
    pub data_path_port: u16,
    /// Next VNI to hand out.
    pub next_vni: u32,
    /// Next number for services and backends in the maps; never reused.
    pub next_number: u32,
    /// A node that has not been heard of for so long is down. Milliseconds.
    pub node_timeout_ms: u64,
}

/// What a network is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Spans the nodes over VXLAN.
    Overlay,
    /// Lives on each node by itself: same subnet everywhere, nothing shared.
    Bridge,
}

/// What becomes of multicast and broadcast on a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Multicast {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// It is copied to all endpoints, within [`overlay_common::maps::MAX_FLOOD`].
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
    /// What it is made of.
    pub driver: Driver,
    /// VXLAN network identifier, 24 bits, unique.
    pub vni: u32,
    /// The subnet; overlaps no other network's.
    pub subnet: Ipv4Net,
    /// Addresses are allocated from here only.
    pub ip_range: Option<Ipv4Net>,
    /// The gateway: an anycast address on every node.
    pub gateway: Ipv4Addr,
    /// Addresses that are never allocated, by name.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// MTU of the containers' interfaces; `None` means the underlay's less 50.
    pub mtu: Option<u32>,
    /// What becomes of multicast and broadcast.
    #[serde(default)]
    pub multicast: Multicast,
    /// No way out and no published ports.
    pub internal: bool,
    /// Standalone containers may join (`overlay run` without `--service`).
    pub attachable: bool,
    /// The one network that carries published ports for services without a network.
    pub ingress: bool,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--opt`, except those that have a field of their own.
    pub options: BTreeMap<String, String>,
    /// Where the next search for a free address starts, so that a freed one rests.
    pub next_address: Ipv4Addr,
    /// Its IPv6 side; `None` for networks of IPv4 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NetworkIpv6>,
}

/// The IPv6 side of a dual-stack network: every endpoint has an address of either family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkIpv6 {
    /// The subnet; overlaps no other network's.
    pub subnet: Ipv6Net,
    /// The gateway: an anycast address on every node.
    pub gateway: Ipv6Addr,
    /// Where the next search for a free address starts.
    pub next_address: Ipv6Addr,
}

impl Network {
    /// True for `bridge`: state of it never leaves the node.
    pub fn is_local(&self) -> bool {
        self.driver == Driver::Bridge
    }
}

/// What a node may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns cluster state, and runs an agent.
    Manager,
    /// Programs its own kernel.
    Agent,
}

/// Whether a node is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Its agent reports.
    Ready,
    /// Its agent has been silent for longer than the cluster's node timeout.
    Down,
}

/// Whether a node's backends take new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// They do.
    Active,
    /// They keep their flows and take no new ones.
    Drain,
}

/// A host of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Identifier; the subject of the node's certificate.
    pub id: Id,
    /// Host name, unique among nodes.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it joined.
    pub created: Timestamp,
    /// Its VTEP, unique among nodes and of one family on all of them.
    pub data_path_addr: IpAddr,
    /// Where its manager listens (managers only).
    pub api_addr: Option<SocketAddr>,
    /// Its own address on the ingress network; 0.0.0.0 while there is no such network.
    pub ingress_ip: Ipv4Addr,
    /// Whether it is heard of.
    pub state: NodeState,
    /// Whether its backends take new flows.
    pub availability: Availability,
    /// IPv6 addresses on which it answers published ports, as its agent says: sorted, at most
    /// [`MAX_ADDRESSES6`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses6: Vec<Ipv6Addr>,
}

impl Node {
    /// What the maps call the node: see [`vtep`].
    pub fn vtep(&self) -> Be32 {
        vtep(self.data_path_addr)
    }
}

/// What the maps call a node with this VTEP: the address, or a number for an IPv6 one.
pub fn vtep(address: IpAddr) -> Be32 {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => hash::of_node(&address.into()),
    }
}

/// How clients of a service find its backends by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// The name resolves to a virtual IP.
    #[default]
    Vip,
    /// The name resolves to the backends' addresses in changing order.
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
    /// Its published ports, every one with a port of its own.
    pub ports: Vec<Port>,
    /// How new flows are shared among its backends.
    #[serde(default)]
    pub balance: Balance,
    /// How its backends are checked; `None`: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<HealthCheck>>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// How long a draining backend keeps its flows, in milliseconds.
    pub drain_ms: u64,
    /// Set when the service only carries `overlay run -p` of this endpoint; it goes with it.
    pub owner: Option<Id>,
}

/// Life of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// It has an address; its node is wiring it, or its service does not listen yet.
    Starting,
    /// It takes flows.
    Running,
    /// It keeps its flows and takes no new ones.
    Draining,
}

/// One interface of one container on one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Identifier.
    pub id: Id,
    /// Its number in the maps (as a backend); never reused.
    pub number: u32,
    /// Name of the container: unique on the network, resolvable there.
    pub name: String,
    /// The container: endpoints with the same one share a network namespace.
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
    /// Further names it answers to on this network.
    pub aliases: Vec<String>,
    /// The service it is a backend of.
    pub service: Option<Id>,
    /// Its share of the service's new flows beside that of other backends; 0: it takes none.
    #[serde(
        default = "balance::default_weight",
        skip_serializing_if = "balance::is_default_weight"
    )]
    pub weight: u16,
    /// Life.
    pub state: EndpointState,
    /// What the checks of its service have shown.
    #[serde(default, skip_serializing_if = "Health::is_unknown")]
    pub health: Health,
    /// When it was made.
    pub created: Timestamp,
}

impl ClusterState {
    /// The network with this name, id or unambiguous beginning of an id (at least 4 characters).
    pub fn network(&self, reference: &str) -> Option<&Network> {
        find(&self.networks, reference, |n| &n.name)
    }

    /// The service with this name, id or beginning of an id.
    pub fn service(&self, reference: &str) -> Option<&Service> {
        find(&self.services, reference, |s| &s.name)
    }

    /// The node with this name, id or beginning of an id.
    pub fn node(&self, reference: &str) -> Option<&Node> {
        find(&self.nodes, reference, |n| &n.name)
    }

    /// The network that carries published ports.
    pub fn ingress(&self) -> Option<&Network> {
        self.networks.values().find(|n| n.ingress)
    }

    /// The endpoints of a network, in the order of their ids.
    pub fn endpoints_of<'a>(&'a self, network: &'a Id) -> impl Iterator<Item = &'a Endpoint> + 'a {
        self.endpoints.values().filter(move |e| e.network == *network)
    }

    /// The endpoints of a service on a network.
    pub fn backends_of<'a>(
        &'a self,
        service: &'a Id,
        network: &'a Id,
    ) -> impl Iterator<Item = &'a Endpoint> + 'a {
        self.endpoints_of(network).filter(move |e| e.service.as_ref() == Some(service))
    }

    /// Applies one change; the caller sets the revision.
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
