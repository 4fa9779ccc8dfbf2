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

/// A call to a manager. The name of the method is the variant's name in snake case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The whole state. Answer: [`crate::model::ClusterState`]. For nodes and administrators.
    State {},
    /// Makes a network. Answer: the new [`crate::model::Network`]. Administrators only.
    NetworkCreate(NetworkCreate),
    /// Removes a network. Answer: the removed [`crate::model::Network`]. Rejected while endpoints
    /// or services use it. Administrators only.
    NetworkRemove(Reference),
    /// Makes a service. Answer: the new [`crate::model::Service`]. Administrators only.
    ServiceCreate(ServiceCreate),
    /// Changes a service. Answer: the changed [`crate::model::Service`]. Administrators only.
    ServiceUpdate(ServiceUpdate),
    /// Removes a service. Answer: the removed [`crate::model::Service`]. Its backends stay as plain
    /// endpoints. Administrators only.
    ServiceRemove(Reference),
    /// Changes a node. Answer: the changed [`crate::model::Node`]. Administrators only.
    NodeUpdate(NodeUpdate),
    /// Reports the IPv6 addresses of a node's host. Answer: the changed [`crate::model::Node`].
    /// Only for the node itself.
    NodeAddresses(NodeAddresses),
    /// Removes a node with its endpoints. Answer: the removed [`crate::model::Node`]. Rejected for
    /// a ready node unless `force`. For administrators, and for the node itself.
    NodeRemove(NodeRemove),
    /// Makes a join token. Answer: [`Token`], the only one that contains its secret. Administrators
    /// only.
    TokenCreate(TokenCreate),
    /// Answer: list of [`TokenInfo`]. Administrators only.
    TokenList {},
    /// Removes a join token. Answer: the removed [`TokenInfo`]. Administrators only.
    TokenRemove(Reference),
    /// Adds a node to the cluster. Answer: [`Joined`]. For any caller with a token: this is the
    /// only call that needs no certificate.
    Join(Join),
    /// Makes a container's endpoints, all of them or none. Answer: list of
    /// [`crate::model::Endpoint`], one per requested network. Only for the node of the endpoints.
    EndpointCreate(EndpointCreate),
    /// Sets the state of a container's endpoints. Answer: list of the changed
    /// [`crate::model::Endpoint`]s. Only for the container's node.
    EndpointUpdate(EndpointUpdate),
    /// Sets the weight of a running backend. Answer: list of the changed
    /// [`crate::model::Endpoint`]s. Administrators only.
    EndpointWeight(EndpointWeight),
    /// Reports the result of a health check. Answer: list of the changed
    /// [`crate::model::Endpoint`]s; empty if the container's service has no health check. Only for
    /// the container's node.
    EndpointHealth(EndpointHealth),
    /// Removes a container's endpoints. Answer: list of the removed [`crate::model::Endpoint`]s. An
    /// empty list is no error. Only for the container's node.
    EndpointRemove(ContainerRef),
    /// Reports that the node is alive and has applied a revision. Answer: [`HeartbeatAnswer`].
    /// Nodes only.
    Heartbeat(Heartbeat),
    /// Counts the flows to a container's draining endpoints. Answer: [`FlowsLeft`]. Nodes and
    /// administrators.
    FlowsLeft(ContainerRef),
    /// Waits until every ready node has applied a revision. Answer: [`SyncAnswer`]. Nodes and
    /// administrators.
    Sync(Sync),
}

/// A reference to an object, by name, id or beginning of an id.
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
    /// Range to allocate addresses from; must lie in the subnet.
    pub ip_range: Option<Ipv4Net>,
    /// Gateway; `None` takes the first address of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 beside IPv4; `None` for IPv4 only.
    pub ipv6: Option<NetworkCreateIpv6>,
    /// Addresses that are never allocated, by name.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// VNI; `None` takes the next free one.
    pub vni: Option<u32>,
    /// MTU; `None` follows the underlay.
    pub mtu: Option<u32>,
    /// How the network handles multicast and broadcast.
    pub multicast: Multicast,
    /// Whether the network has no egress.
    pub internal: bool,
    /// Whether standalone containers may join.
    pub attachable: bool,
    /// Whether it is the ingress network, which carries published ports. There is at most one.
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
    /// Name, id or beginning of an id of the node.
    pub reference: String,
    /// Whether its backends take new flows.
    pub availability: Availability,
}

/// Parameters of `node_remove`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRemove {
    /// Name, id or beginning of an id of the node.
    pub reference: String,
    /// Remove the node even if it is ready.
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
    /// The argument of `overlay join --token`.
    pub token: String,
    /// The token's entry in listings.
    pub info: TokenInfo,
}

/// A join token's entry in listings. It never contains the secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Identifier.
    pub id: Id,
    /// Role of the nodes that join with it.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
    /// When it expires.
    pub expires: Timestamp,
}

/// Parameters of `join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Proof of the token: its last two parts, `ID-SECRET`.
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
    /// The node of the container; must be the caller.
    pub node: Id,
    /// The container's id. The caller chooses it, so that a repeated call is recognized.
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
    /// All IPv6 addresses on which the host answers published ports, in any order; at most
    /// [`crate::model::MAX_ADDRESSES6`].
    pub addresses6: Vec<Ipv6Addr>,
}

/// Parameters of `endpoint_update`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointUpdate {
    /// The container.
    pub container: Id,
    /// New state of all its endpoints.
    pub state: EndpointState,
}

/// Parameters of `endpoint_health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointHealth {
    /// The container.
    pub container: Id,
    /// Health of all its endpoints that are backends of a service with a health check.
    pub health: Health,
}

/// Parameters of `endpoint_weight`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointWeight {
    /// The container: name, id or at least four characters of the beginning of an id.
    pub container: String,
    /// Weight: its share of the service's new flows, relative to other backends. With 0 it takes
    /// none.
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
    /// Number of flows in its own conntrack table to each draining backend, by backend number. Only
    /// flows that were counted after its maps marked the backend as draining.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<u32, u64>,
}

/// Answer to `flows_left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsLeft {
    /// Total number of flows on all ready nodes; `None` until every node has counted.
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
    /// The revision to wait for; `None` means the current one.
    pub revision: Option<u64>,
    /// Longest wait, in milliseconds.
    pub timeout_ms: u64,
}

/// Answer to `sync`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncAnswer {
    /// The revision that the call waited for.
    pub revision: u64,
    /// Names of the ready nodes that had not applied it by the end of the wait.
    pub lagging: Vec<String>,
}

/// Kind of the failure of an [`ApiError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or out of range (400).
    Invalid,
    /// The token or certificate is missing, wrong or expired (401).
    Unauthenticated,
    /// The caller may not do this (403).
    Forbidden,
    /// The named object does not exist (404).
    NotFound,
    /// The object already exists or is in use, or the port is taken (409).
    Conflict,
    /// No address, VNI or port is left (507).
    Exhausted,
    /// No manager is reachable (503).
    Unavailable,
    /// A failure of this program or of the kernel (500).
    Internal,
}

impl ErrorCode {
    /// Returns the HTTP status.
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

/// A failed call: the failure and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", .hint.as_ref().map(|h| format!("\n{h}")).unwrap_or_default())]
pub struct ApiError {
    /// Kind of the failure.
    pub code: ErrorCode,
    /// The requested operation and the reason why it failed.
    pub message: String,
    /// The remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// Makes an error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds a remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The caller of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Root on the manager's host, through the unix socket.
    Administrator,
    /// A node, identified by its certificate.
    Node(Id),
    /// An unknown caller: TLS without a client certificate.
    Anonymous,
}
