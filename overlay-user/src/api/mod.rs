//! The API that managers, agents and the command line speak: JSON over HTTP, on a unix socket
//! locally and over mutual TLS between nodes.
//!
//! A call is `POST /v1/METHOD` with the parameters as a JSON object; the answer is JSON, or an
//! [`ApiError`] with a status that fits its code. `GET /v1/watch` streams
//! [`crate::model::WatchEvent`]s, one JSON object a line.
//!
//! ```text
//! curl --unix-socket /run/overlay/overlay.sock -d '{}' http://localhost/v1/state
//! ```

mod observe;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use jiff::Timestamp;
pub use observe::{
    DEFAULT_SNAPLEN, Event, EventKind, EventMessage, EventRequest, NewFlow, TrafficRow,
};
use serde::{Deserialize, Serialize};

use crate::model::{
    Availability, EndpointMode, EndpointState, HashBy, Health, Id, Multicast, OnLoss, Port, Probe,
    Role, Scheduler,
};

/// A call to a manager. The method's name on the wire is the variant's in snake case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The whole state. Answer: [`crate::model::ClusterState`]. For nodes and administrators.
    State {},
    /// Answer: the [`crate::model::Network`] made. Administrators only.
    NetworkCreate(NetworkCreate),
    /// Answer: the [`crate::model::Network`] removed. Refused while endpoints or services use it.
    /// Administrators only.
    NetworkRemove(Reference),
    /// Answer: the [`crate::model::Service`] made. Administrators only.
    ServiceCreate(ServiceCreate),
    /// Answer: the [`crate::model::Service`] as it is now. Administrators only.
    ServiceUpdate(ServiceUpdate),
    /// Answer: the [`crate::model::Service`] removed; its backends stay as plain endpoints.
    /// Administrators only.
    ServiceRemove(Reference),
    /// Answer: the [`crate::model::Node`] as it is now. Administrators only.
    NodeUpdate(NodeUpdate),
    /// Answer: the [`crate::model::Node`] removed with its endpoints. Refused for a ready node
    /// unless `force`. Administrators; a node for itself.
    NodeRemove(NodeRemove),
    /// Answer: [`Token`], the only time its secret is shown. Administrators only.
    TokenCreate(TokenCreate),
    /// Answer: list of [`TokenInfo`]. Administrators only.
    TokenList {},
    /// Answer: the [`TokenInfo`] removed. Administrators only.
    TokenRemove(Reference),
    /// Answer: [`Joined`]. For anyone with a token: the only call that needs no certificate.
    Join(Join),
    /// Answer: list of [`crate::model::Endpoint`], one per network asked for. All or nothing.
    /// Only for the node the endpoints are on.
    EndpointCreate(EndpointCreate),
    /// Answer: list of [`crate::model::Endpoint`] changed. Only for the container's node.
    EndpointUpdate(EndpointUpdate),
    /// Sets the weight of a running backend. Answer: list of [`crate::model::Endpoint`] changed.
    /// Administrators only.
    EndpointWeight(EndpointWeight),
    /// What a health check has shown. Answer: list of [`crate::model::Endpoint`] changed; none where the
    /// container's service is not checked. Only for the container's node.
    EndpointHealth(EndpointHealth),
    /// Answer: list of [`crate::model::Endpoint`] removed; none is no error. Only for the
    /// container's node.
    EndpointRemove(ContainerRef),
    /// "I am alive and have applied this revision." Answer: [`HeartbeatAnswer`]. Nodes only.
    Heartbeat(Heartbeat),
    /// Answer: [`FlowsLeft`] to a container's draining endpoints. Nodes and administrators.
    FlowsLeft(ContainerRef),
    /// Waits until every ready node has applied a revision. Answer: [`SyncAnswer`]. Nodes and
    /// administrators.
    Sync(Sync),
}

/// What is meant, by name, id or beginning of an id.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Name, id or at least four characters of the beginning of an id.
    pub reference: String,
}

/// Parameters of `network_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkCreate {
    /// Name.
    pub name: String,
    /// Subnet; `None` takes the next free one of the default pool.
    pub subnet: Option<Ipv4Net>,
    /// Allocate from here only; must lie in the subnet.
    pub ip_range: Option<Ipv4Net>,
    /// Gateway; `None` takes the first address of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 beside IPv4; `None` for IPv4 alone.
    pub ipv6: Option<NetworkCreateIpv6>,
    /// Addresses never to allocate, by name.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// VNI; `None` takes the next free one.
    pub vni: Option<u32>,
    /// MTU; `None` follows the underlay.
    pub mtu: Option<u32>,
    /// What becomes of multicast and broadcast.
    pub multicast: Multicast,
    /// No way out.
    pub internal: bool,
    /// Standalone containers may join.
    pub attachable: bool,
    /// The network for published ports; at most one.
    pub ingress: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The IPv6 side of a network to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkCreateIpv6 {
    /// Subnet; `None` takes a unique local /64 (RFC 4193).
    pub subnet: Option<Ipv6Net>,
    /// Gateway; `None` takes the first address of the subnet for hosts.
    pub gateway: Option<Ipv6Addr>,
}

/// Parameters of `service_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceCreate {
    /// Name.
    pub name: String,
    /// Networks by name or id; empty means `ingress`.
    pub networks: Vec<String>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// How the name resolves.
    pub mode: EndpointMode,
    /// How new flows are shared.
    pub balance: BalanceChange,
    /// How backends are checked; without a probe they are not.
    pub health: HealthChange,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How long draining backends keep their flows, in milliseconds; `None`: 5000.
    pub drain_ms: Option<u64>,
}

/// Parameters of `service_update`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceUpdate {
    /// Which service.
    pub reference: String,
    /// Ports to publish.
    pub publish_add: Vec<Port>,
    /// Published ports to give up, by published port (or target, where that is unambiguous) and
    /// protocol.
    pub publish_remove: Vec<Port>,
    /// How new flows are shared from now on.
    pub balance: BalanceChange,
    /// How backends are checked from now on.
    pub health: HealthChange,
    /// Labels to set.
    pub label_add: BTreeMap<String, String>,
    /// Labels to remove.
    pub label_remove: Vec<String>,
    /// New drain time in milliseconds.
    pub drain_ms: Option<u64>,
}

/// What `service_create` and `service_update` say about the sharing of new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalanceChange {
    /// The scheduler; `None`: as it is, [`Scheduler::Rr`] for a new service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb: Option<Scheduler>,
    /// What it hashes; `None`: as it is, or what a new scheduler does by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb_hash: Option<HashBy>,
    /// For how long after its last new flow a client keeps its backend, in milliseconds; 0: it does
    /// not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_ms: Option<u64>,
    /// For how long established TCP and SCTP flows may be idle, in milliseconds; 0: the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_timeout_ms: Option<u64>,
    /// For how long UDP flows may be idle, in milliseconds; 0: the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_timeout_ms: Option<u64>,
    /// What becomes of TCP connections whose backend has gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_loss: Option<OnLoss>,
}

/// What `service_create` and `service_update` say about health checks. What is `None` stays as it is;
/// a new check has an interval of 5 s, a timeout of 2 s, 3 retries and no start period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthChange {
    /// No check any more; goes with nothing else.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
    /// What is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// From the end of one try to the next, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Longest a try may take, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Failures in a row that make a backend unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// For how long after its start failures do not count, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
}

/// Parameters of `node_update`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeUpdate {
    /// Which node.
    pub reference: String,
    /// Whether its backends take new flows.
    pub availability: Availability,
}

/// Parameters of `node_remove`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRemove {
    /// Which node.
    pub reference: String,
    /// Also when it is ready.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `token_create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// Seconds until it expires.
    pub ttl_secs: u64,
}

/// A join token with its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Token {
    /// What goes after `overlay join --token`.
    pub token: String,
    /// What is listed of it.
    pub info: TokenInfo,
}

/// What is listed of a join token: never its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Identifier.
    pub id: Id,
    /// What nodes become with it.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops working.
    pub expires: Timestamp,
}

/// Parameters of `join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// What the token proves itself with: its last two parts, `ID-SECRET`.
    pub secret: String,
    /// Name of the node.
    pub name: String,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
    /// Its certificate signing request, PEM; the key never leaves the node.
    pub csr_pem: String,
}

/// Answer to `join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The node as registered.
    pub node: crate::model::Node,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's CA certificate, PEM.
    pub ca_pem: String,
    /// UDP port of VXLAN in this cluster.
    pub data_path_port: u16,
}

/// Parameters of `endpoint_create`: a container with one endpoint per network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointCreate {
    /// The node; must be the caller.
    pub node: Id,
    /// The container's id, chosen by the caller, so that a repeated call is recognized.
    pub container: Id,
    /// Name of the container.
    pub name: String,
    /// Networks by name or id. With a service, empty means the service's networks.
    pub networks: Vec<String>,
    /// A fixed address; only with exactly one network.
    pub ip: Option<Ipv4Addr>,
    /// A fixed IPv6 address; only with exactly one network, which must be dual-stack.
    pub ip6: Option<Ipv6Addr>,
    /// Further names.
    pub aliases: Vec<String>,
    /// The service it is a backend of, by name or id.
    pub service: Option<String>,
    /// Its share of the service's new flows, only with a service; `None`: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Ports published for this container alone (not together with a service).
    pub ports: Vec<Port>,
}

/// Parameters of `endpoint_update`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointUpdate {
    /// The container.
    pub container: Id,
    /// State of all its endpoints.
    pub state: EndpointState,
}

/// Parameters of `endpoint_health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointHealth {
    /// The container.
    pub container: Id,
    /// Health of all its endpoints that serve a service with a check.
    pub health: Health,
}

/// Parameters of `endpoint_weight`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointWeight {
    /// The container: name, id or at least four characters of the beginning of an id.
    pub container: String,
    /// Its share of its service's new flows beside that of other backends; 0: it takes none.
    pub weight: u16,
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRef {
    /// The container.
    pub container: Id,
}

/// Parameters of `heartbeat`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// The caller.
    pub node: Id,
    /// Highest revision that its maps show.
    pub applied: u64,
    /// How many flows of its own conntrack table go to draining backends, by number; only those that
    /// were counted since its maps show that they drain.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<u32, u64>,
}

/// Answer to `flows_left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsLeft {
    /// How many flows all ready nodes together have; `None` while one has not counted.
    pub flows: Option<u64>,
}

/// Answer to `heartbeat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Current revision of the store.
    pub revision: u64,
}

/// Parameters of `sync`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// The revision; `None` means the current one.
    pub revision: Option<u64>,
    /// Give up after so many milliseconds.
    pub timeout_ms: u64,
}

/// Answer to `sync`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncAnswer {
    /// The revision waited for.
    pub revision: u64,
    /// Names of ready nodes that had not applied it by the end of the wait.
    pub lagging: Vec<String>,
}

/// A call to the agent of this host, over the unix socket only. The path is `/v1/local/METHOD`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case", deny_unknown_fields)]
pub enum LocalRequest {
    /// Answer: [`Status`].
    Status {},
    /// Makes a namespace an endpoint. Answer: [`Attached`].
    Attach(Attach),
    /// Drains (unless `force`), unwires and removes a container's endpoints. Answer: list of
    /// endpoints removed.
    Detach(Detach),
    /// Takes a container's backends out of the pick everywhere and waits until every node has
    /// applied it and the drain time is over. Answer: [`Drained`].
    Drain(ContainerByName),
    /// Answer: list of [`LocalContainer`].
    Containers {},
    /// Answer: the live tables of the datapath, [`crate::datapath::Tables`].
    Tables {},
    /// Removes this node from the cluster and everything it made from the kernel, then stops the
    /// daemon. Answer: [`Left`].
    Leave(Leave),
}

/// Parameters of `attach`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attach {
    /// Network namespace: a path such as `/run/netns/web` or `/proc/4711/ns/net`.
    pub netns: String,
    /// Name of the container; `None` makes one up.
    pub name: Option<String>,
    /// Networks by name or id; empty: the service's.
    pub networks: Vec<String>,
    /// A fixed address; only with exactly one network.
    pub ip: Option<Ipv4Addr>,
    /// A fixed IPv6 address; only with exactly one network, which must be dual-stack.
    pub ip6: Option<Ipv6Addr>,
    /// Further names.
    pub aliases: Vec<String>,
    /// The service it serves.
    pub service: Option<String>,
    /// Its share of the service's new flows; `None`: 1.
    pub weight: Option<u16>,
    /// Ports published for this container alone.
    pub ports: Vec<Port>,
    /// Process whose end means the end of the container: the agent then cleans up.
    pub pid: Option<u32>,
    /// First name of the interfaces: `eth` gives eth0, eth1, ….
    pub interface_prefix: Option<String>,
    /// Leave the endpoints `starting` until the caller says otherwise or a published port of
    /// theirs listens.
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
    /// Ports published for it alone, with the ports chosen.
    pub ports: Vec<Port>,
}

/// One interface of an attached namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachedInterface {
    /// Name inside the namespace.
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
    /// IPv6 gateway; `None` on internal networks and on those of IPv4 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// MTU.
    pub mtu: u32,
    /// Endpoint.
    pub endpoint: Id,
}

impl AttachedInterface {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ip6 = self.address6.map(|address| IpAddr::V6(address.addr()));
        std::iter::once(IpAddr::V4(self.address.addr())).chain(ip6)
    }
}

/// A container of this host by name or id.
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
    /// Do not drain first.
    #[serde(default)]
    pub force: bool,
}

/// Answer to `drain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drained {
    /// Names of nodes that had not confirmed by the end of the wait.
    pub lagging: Vec<String>,
    /// How long the flows were left to end after every node confirmed, in milliseconds.
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
    /// Process whose end means its end.
    pub pid: Option<u32>,
    /// The service it serves.
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
    /// XDP mode in force: native, generic or off.
    pub xdp: String,
    /// How the TC programs are attached: tcx or clsact.
    pub tc: String,
    /// Whether published ports answer on localhost (needs cgroup v2); else why not.
    pub socket_programs: Result<(), String>,
    /// Whether the managers are reachable.
    pub connected: bool,
    /// Manager it follows.
    pub manager: Option<SocketAddr>,
    /// Revision last heard of.
    pub revision: u64,
    /// Revision that the maps show.
    pub applied: u64,
    /// Last error of reconciliation, if it has not been overcome.
    pub last_error: Option<String>,
    /// Directory of the pins.
    pub pin_dir: String,
    /// Entries per map.
    pub entries: BTreeMap<String, u64>,
    /// Counters by reason, those that are not zero.
    pub counters: Vec<CounterRow>,
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
    /// What it means.
    pub description: String,
}

/// Parameters of `leave`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// Also when containers are attached, or when this is the last manager.
    #[serde(default)]
    pub force: bool,
}

/// Answer to `leave`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left {
    /// What was removed.
    pub removed: Vec<String>,
}

/// What kind of failure an [`ApiError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or out of range (400).
    Invalid,
    /// The token or certificate is missing, wrong or expired (401).
    Unauthenticated,
    /// The caller may not do this (403).
    Forbidden,
    /// What was named does not exist (404).
    NotFound,
    /// It exists already, is in use, or the port is taken (409).
    Conflict,
    /// No address, VNI or port is left (507).
    Exhausted,
    /// No manager is reachable (503).
    Unavailable,
    /// A failure of ours or of the kernel (500).
    Internal,
}

impl ErrorCode {
    /// HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Exhausted => 507,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// A failed call: what went wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", .hint.as_ref().map(|h| format!("\n{h}")).unwrap_or_default())]
pub struct ApiError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What was asked and what was found.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Root on the manager's host, through the unix socket.
    Administrator,
    /// A node, by its certificate.
    Node(Id),
    /// Nobody we know: TLS without a client certificate.
    Anonymous,
}
