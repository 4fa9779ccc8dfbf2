//! What the agent of a host tells of its traffic.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::packet::Headers;

/// Packets of one endpoint, or of a network those that are no endpoint's, for one reason in one
/// direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRow {
    /// VNI of the network; 0 where the packet is of no network that is known here.
    pub vni: u32,
    /// Name of the network.
    pub network: Option<String>,
    /// Name of the endpoint.
    pub endpoint: Option<String>,
    /// Address of the endpoint.
    pub ip: Option<String>,
    /// `sent` by the endpoint, or `received`: for it, or for the network.
    pub traffic: String,
    /// `forward` or `drop`.
    pub direction: String,
    /// Name of the reason.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

/// What is told of a host's traffic.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A packet was dropped
    Drop,
    /// A flow was given a backend
    Flow,
    /// A packet that an endpoint sent or received
    #[value(skip)]
    Capture,
}

/// Parameters of `POST /v1/local/events`, which streams [`EventMessage`]s, one JSON object a line,
/// until the caller hangs up. What is not given is not asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventRequest {
    /// What to tell of.
    pub kinds: BTreeSet<EventKind>,
    /// Only of this network, by name or id.
    pub network: Option<String>,
    /// Only of this endpoint of the host, by name; with several networks, also name the network.
    pub endpoint: Option<String>,
    /// Only with this reason.
    pub reason: Option<String>,
    /// Only with this IP protocol number.
    pub protocol: Option<u8>,
    /// Only to or from this TCP or UDP port.
    pub port: Option<u16>,
    /// Only to or from this address.
    pub host: Option<IpAddr>,
    /// Most bytes of a captured packet; `None`: [`DEFAULT_SNAPLEN`].
    pub snaplen: Option<u32>,
    /// Of so many captured packets one is told, at random.
    pub sample: Option<u32>,
}

/// Bytes of a captured packet unless asked otherwise: any that is no aggregate of segments, whole.
pub const DEFAULT_SNAPLEN: u32 = 2_048;

/// One line of the stream of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventMessage {
    /// From here on everything is told that is asked for: the first line.
    Watching,
    /// Something happened.
    Event(Box<Event>),
    /// So many events were lost before the next line: there were more than this reader took.
    Lost(u64),
}

/// Something that happened to a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// What.
    pub kind: EventKind,
    /// Name of the reason for which the packet went on or was dropped.
    pub reason: String,
    /// Whether a captured packet was dropped.
    pub dropped: bool,
    /// `sent` or `received`, seen from the endpoint; of flows nothing.
    pub traffic: Option<String>,
    /// VNI of the network; 0 where it is not known.
    pub vni: u32,
    /// Name of the network.
    pub network: Option<String>,
    /// Name of the endpoint.
    pub endpoint: Option<String>,
    /// Address of the endpoint.
    pub ip: Option<String>,
    /// Name or number of the host's interface that the packet came in by.
    pub interface: Option<String>,
    /// Bytes of the packet.
    pub length: u32,
    /// The packet or its beginning, in hexadecimal.
    pub packet: String,
    /// Its headers; of captured packets the reader has to look himself.
    pub headers: Option<Headers>,
    /// The flow.
    pub flow: Option<NewFlow>,
}

/// A flow that was given a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFlow {
    /// tcp or udp.
    pub protocol: String,
    /// Who asks.
    pub source: SocketAddr,
    /// What is asked: a VIP or a published port.
    pub destination: SocketAddr,
    /// The source that the backend sees.
    pub new_source: SocketAddr,
    /// The backend's address and port.
    pub new_destination: SocketAddr,
    /// Name of the service.
    pub service: Option<String>,
    /// Name of the backend.
    pub backend: Option<String>,
    /// Name of the backend's network.
    pub backend_network: Option<String>,
}
