//! Peers: the nodes that may send tunnel packets of a network. These are the nodes with endpoints
//! of it and, for clients outside, every node of the cluster.
//!
//! Most packets prove their node's membership by their inner source, in one look-up. This module
//! checks only packets that will be dropped, so that they are dropped for the right reason.

use overlay_common::{
    BRIDGE_VNI, Be32, Reason, UNDERLAY_VNI,
    maps::{Config, PeerKey},
    wire::Vxlan,
};

use crate::maps::{NETWORKS, PEERS, lookup};

/// The VNI of a tunnel packet.
///
/// # Errors
/// [`Reason::InvalidVni`].
#[inline(always)]
pub fn vni_of(vxlan: &Vxlan) -> Result<u32, Reason> {
    match vxlan.vni() {
        None | Some(UNDERLAY_VNI | BRIDGE_VNI) => Err(Reason::InvalidVni),
        Some(vni) => Ok(vni),
    }
}

/// Checks that `sender` is a node of the cluster.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn check_peer(sender: Be32) -> Result<(), Reason> {
    let peer = PeerKey { vni: UNDERLAY_VNI, node: sender };
    lookup(&PEERS, &peer).map(|_| ()).ok_or(Reason::NotPeer)
}

/// Checks that `sender` can be another node at all. An endpoint on it then proves that it is one.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn check_other(config: &Config, sender: Be32) -> Result<(), Reason> {
    if sender == Be32::ZERO || sender == config.vtep { Err(Reason::NotPeer) } else { Ok(()) }
}

/// Checks that network `vni` is known here and that node `sender` has endpoints of it.
///
/// # Errors
/// [`Reason::UnknownVni`] and [`Reason::NotPeer`].
#[inline(always)]
pub fn check(vni: u32, sender: Be32) -> Result<(), Reason> {
    // The reason of a packet to an unknown address.
    match classify(vni, sender, Reason::NoEndpoint) {
        Reason::NoEndpoint => Ok(()),
        non_peer => Err(non_peer),
    }
}

/// The reason to drop a packet of network `vni` from node `sender` of the cluster. `reason` is the
/// fault of the packet. A fault that only a node outside of the network would cause becomes
/// [`Reason::UnknownVni`] or [`Reason::NotPeer`]. `vni` is [`UNDERLAY_VNI`] if the packet has none.
#[inline(always)]
pub fn classify(vni: u32, sender: Be32, reason: Reason) -> Reason {
    Reason::from_index(classify_by_number(vni, sender, reason as u32) as u32).unwrap_or(reason)
}

/// A separate function, so that LLVM does not merge it into the paths of packets that are not
/// dropped.
#[inline(never)]
fn classify_by_number(vni: u32, sender: Be32, number: u32) -> i64 {
    let needs_peer_check = Reason::from_index(number).is_some_and(needs_peer_check);
    let classified = if vni == UNDERLAY_VNI || !needs_peer_check {
        None
    } else if NETWORKS.get_ptr(&vni).is_none() {
        Some(Reason::UnknownVni)
    } else if PEERS.get_ptr(&PeerKey { vni, node: sender }).is_none() {
        Some(Reason::NotPeer)
    } else {
        None
    };
    i64::from(classified.map_or(number, |reason| reason as u32))
}

/// Whether the sender's membership of the network must be checked for a packet with this fault.
/// Other reasons come from the path or from this node, or from packets that every node may send:
/// packets of clients to published ports, and replies of flows that this node translated.
#[inline(always)]
const fn needs_peer_check(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoEndpoint
            | Reason::SpoofedInnerSource
            | Reason::Multicast
            | Reason::UnsupportedProtocol
            | Reason::Malformed
            | Reason::Truncated
            | Reason::ServiceProtocol
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_node_may_send_is_dropped_for_its_own_reason() {
        let clients = [Reason::NotPublished, Reason::TupleTaken, Reason::Fragment];
        for reason in clients.into_iter().chain([Reason::UnrelatedError, Reason::BackendGone]) {
            assert!(!needs_peer_check(reason), "{}", reason.name());
        }
        // The packet is classified again after the kernel's device has decapsulated it.
        assert!(!needs_peer_check(Reason::TunnelRefused));
    }
}
