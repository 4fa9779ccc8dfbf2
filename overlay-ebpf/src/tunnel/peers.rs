//! Who may send on a network through the tunnel: the nodes that have endpoints of it, and, for clients
//! outside, every node of the cluster.
//!
//! The usual packet proves its node's membership by its inner source, in one look-up. Only what is
//! about to be dropped is looked at here, so that it is dropped for the right reason.

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

/// Whether `sender` is a node of the cluster.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn check_peer(sender: Be32) -> Result<(), Reason> {
    let peer = PeerKey { vni: UNDERLAY_VNI, node: sender };
    lookup(&PEERS, &peer).map(|_| ()).ok_or(Reason::NotPeer)
}

/// Whether `sender` can be another node at all: what is on it is then proof enough that it is one.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn check_other(config: &Config, sender: Be32) -> Result<(), Reason> {
    if sender == Be32::ZERO || sender == config.vtep { Err(Reason::NotPeer) } else { Ok(()) }
}

/// Whether network `vni` is known here and node `sender` has endpoints of it.
///
/// # Errors
/// [`Reason::UnknownVni`] and [`Reason::NotPeer`].
#[inline(always)]
pub fn check(vni: u32, sender: Be32) -> Result<(), Reason> {
    // What a packet to nobody is dropped for.
    match classify(vni, sender, Reason::NoEndpoint) {
        Reason::NoEndpoint => Ok(()),
        non_peer => Err(non_peer),
    }
}

/// Why a packet of network `vni` from node `sender`, which is of the cluster, is dropped. `reason` is
/// what is wrong with the packet; what no node of the network would send is told apart from what one
/// has sent that is not of it. `vni` is [`UNDERLAY_VNI`] when the packet did not say it.
#[inline(always)]
pub fn classify(vni: u32, sender: Be32, reason: Reason) -> Reason {
    Reason::from_index(classify_by_number(vni, sender, reason as u32) as u32).unwrap_or(reason)
}

/// A call, so that LLVM does not weave this into the ways of packets that are not dropped.
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

/// Whether a packet that is dropped for `reason` says nothing for its node. The other reasons are the
/// path's or this node's doing, or are met only by what every node may send: packets of clients to
/// published ports, and replies of flows that were translated here.
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
        // What is refused here is classified again when the kernel's device has taken it apart.
        assert!(!needs_peer_check(Reason::TunnelRefused));
    }
}
