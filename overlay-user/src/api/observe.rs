//! Information of a host's agent about its traffic.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::packet::Headers;

/// Packets of one endpoint for one reason in one direction; or those packets of a network that
/// belong to no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRow {
    /// VNI of the network; 0 if the packet belongs to no network of this node.
    pub vni: u32,
    /// Name of the network.
    pub network: Option<String>,
    /// Name of the endpoint.
    pub endpoint: Option<String>,
    /// Address of the endpoint.
    pub ip: Option<String>,
    /// `sent` if the endpoint sent the packets; `received` if they were for the endpoint or the
    /// network.
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
/// until the caller closes the connection. An absent filter matches everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventRequest {
    /// Kinds of events to report.
    pub kinds: BTreeSet<EventKind>,
    /// Report only events of this network, by name or id.
    pub network: Option<String>,
    /// Report only events of this endpoint of the host, by name. If it has several networks, also
    /// name the network.
    pub endpoint: Option<String>,
    /// Report only events with this reason.
    pub reason: Option<String>,
    /// Report only events with this IP protocol number.
    pub protocol: Option<u8>,
    /// Report only events to or from this TCP or UDP port.
    pub port: Option<u16>,
    /// Report only events to or from this address.
    pub host: Option<IpAddr>,
    /// Longest captured part of a packet, in bytes; `None`: [`DEFAULT_SNAPLEN`].
    pub snaplen: Option<u32>,
    /// Report one of this many captured packets, at random.
    pub sample: Option<u32>,
}

/// Default length of a captured packet, in bytes. It holds any packet as a whole that is not an
/// aggregate of segments.
pub const DEFAULT_SNAPLEN: u32 = 2_048;

/// One line of the stream of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventMessage {
    /// The first line. From here on, every matching event is reported.
    Watching,
    /// Something happened.
    Event(Box<Event>),
    /// Number of events that were lost before the next line, because the reader was too slow.
    Lost(u64),
}

/// Something that happened to a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time of the event.
    pub time: Timestamp,
    /// Kind of the event.
    pub kind: EventKind,
    /// Name of the reason for which the packet was forwarded or dropped.
    pub reason: String,
    /// Whether a captured packet was dropped.
    pub dropped: bool,
    /// `sent` or `received`, from the endpoint's point of view; `None` for flows.
    pub traffic: Option<String>,
    /// VNI of the network; 0 if it is unknown.
    pub vni: u32,
    /// Name of the network.
    pub network: Option<String>,
    /// Name of the endpoint.
    pub endpoint: Option<String>,
    /// Address of the endpoint.
    pub ip: Option<String>,
    /// Name or number of the host's interface on which the packet arrived.
    pub interface: Option<String>,
    /// Length of the packet in bytes.
    pub length: u32,
    /// The packet or its beginning, in hexadecimal.
    pub packet: String,
    /// Its headers; `None` for captured packets, which the reader must parse.
    pub headers: Option<Headers>,
    /// The flow.
    pub flow: Option<NewFlow>,
}

/// A flow that got a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFlow {
    /// tcp or udp.
    pub protocol: String,
    /// The client.
    pub source: SocketAddr,
    /// The original destination: a VIP or a published port.
    pub destination: SocketAddr,
    /// The source address and port that the backend sees.
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
