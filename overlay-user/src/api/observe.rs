//! What the agent of a host tells of its traffic.

use serde::{Deserialize, Serialize};

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
