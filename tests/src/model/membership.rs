//! "The nodes with endpoints of a network send on it. Any node of the cluster sends what clients
//! outside have sent to its published ports, and the replies of flows that were translated here."

use std::net::Ipv4Addr;

use overlay_common::{Reason, UNDERLAY_VNI, maps::PeerKey};

use super::walk::Walk;

/// What is wrong with a node that is to be of the packet's network.
pub fn stranger(walk: &Walk<'_>, sender: Ipv4Addr) -> Option<Reason> {
    let vni = walk.party.vni;
    let peer = PeerKey { vni, node: sender.into() };
    if walk.network(vni).is_none() {
        Some(Reason::UnknownVni)
    } else if !walk.tables.agent.peers.contains_key(&peer) {
        Some(Reason::NotPeer)
    } else {
        None
    }
}

/// Why a packet from a node of the cluster is dropped. Who has no part in the network is told so,
/// but for reasons that others than its nodes meet.
pub fn judge(walk: &Walk<'_>, sender: Ipv4Addr, reason: Reason) -> Reason {
    let others_too = match reason {
        // The packet is a stranger's, or says no network.
        Reason::NotPeer | Reason::InvalidVni | Reason::UnknownVni => true,
        // A router's doing.
        Reason::EcnUnexpected => true,
        // Clients' packets.
        Reason::NotPublished | Reason::TupleTaken => true,
        Reason::Fragment | Reason::UnrelatedError => true,
        // Replies to clients.
        Reason::BackendGone | Reason::NoRoute | Reason::TooBig | Reason::RewriteRefused => true,
        _ => walk.party.vni == UNDERLAY_VNI,
    };
    if others_too { reason } else { stranger(walk, sender).unwrap_or(reason) }
}
