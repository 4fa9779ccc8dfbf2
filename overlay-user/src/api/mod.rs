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

mod local;
mod observe;
mod service;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use jiff::Timestamp;
pub use local::{
    Attach, Attached, AttachedInterface, ContainerByName, CounterRow, Detach, Drained, FillRow,
    Leave, Left, LocalContainer, LocalRequest, Status,
};
pub use observe::{
    DEFAULT_SNAPLEN, Event, EventKind, EventMessage, EventRequest, NewFlow, TrafficRow,
};
use serde::{Deserialize, Serialize};
pub use service::{HealthChange, ServiceCreate, ServiceUpdate};

use crate::model::{Availability, EndpointState, Health, Id, Multicast, Port, Role};

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
    /// "These are my host's IPv6 addresses." Answer: the [`crate::model::Node`] as it is now. Only
    /// for the node itself.
    NodeAddresses(NodeAddresses),
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
    /// What a health check has shown. Answer: list of [`crate::model::Endpoint`] changed; none
    /// where the container's service is not checked. Only for the container's node.
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

/// Parameters of `node_addresses`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAddresses {
    /// The caller.
    pub node: Id,
    /// All IPv6 addresses on which it answers published ports, no more than
    /// [`crate::model::MAX_ADDRESSES6`], in any order.
    pub addresses6: Vec<Ipv6Addr>,
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
    /// How many flows of its own conntrack table go to draining backends, by number; only those
    /// that were counted since its maps show that they drain.
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
