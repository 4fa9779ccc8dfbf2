//! Limits the connections of each peer, so that a hostile peer does not block the others.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::model::Id;

/// Most connections without a certificate from one address.
const STRANGERS_PER_ADDRESS: usize = 64;
/// Most connections without a certificate in total.
const STRANGERS: usize = 1024;
/// Most connections of one node.
const PER_NODE: usize = 64;

/// Open connections.
#[derive(Clone, Default)]
pub(super) struct Limits(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// The oldest connection comes first.
    strangers: VecDeque<(IpAddr, Arc<Notify>)>,
    nodes: HashMap<Id, usize>,
}

impl Limits {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection that has shown no certificate yet. If there are too many, the oldest one
    /// must close. An honest client completes the handshake before its connection becomes the
    /// oldest.
    pub fn stranger(&self, address: IpAddr) -> Stranger {
        let mut held = self.held();
        let same = held.strangers.iter().filter(|(a, _)| *a == address).count();
        let evicted = if same >= STRANGERS_PER_ADDRESS {
            held.strangers.iter().position(|(a, _)| *a == address)
        } else {
            (held.strangers.len() >= STRANGERS).then_some(0)
        };
        if let Some((_, evicted)) = evicted.and_then(|index| held.strangers.remove(index)) {
            evicted.notify_one();
        }
        let evicted = Arc::new(Notify::new());
        held.strangers.push_back((address, Arc::clone(&evicted)));
        Stranger { limits: self.clone(), evicted }
    }

    /// Admits a connection of a node unless the node has too many.
    pub fn node(&self, id: &Id) -> Option<Member> {
        let mut held = self.held();
        let count = held.nodes.entry(id.clone()).or_default();
        if *count >= PER_NODE {
            return None;
        }
        *count += 1;
        Some(Member { limits: self.clone(), id: id.clone() })
    }
}

/// A connection without a certificate. It counts until it is dropped.
pub(super) struct Stranger {
    limits: Limits,
    evicted: Arc<Notify>,
}

impl Stranger {
    /// Waits until the connection must close.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.limits.held().strangers.retain(|(_, other)| !Arc::ptr_eq(other, &self.evicted));
    }
}

/// A connection of a node. It counts until it is dropped.
pub(super) struct Member {
    limits: Limits,
    id: Id,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut held = self.limits.held();
        if let Some(count) = held.nodes.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                held.nodes.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    fn is_evicted(stranger: &Stranger) -> bool {
        stranger.evicted().now_or_never().is_some()
    }

    #[test]
    fn an_address_with_too_many_connections_loses_its_oldest_and_no_other_does() {
        let limits = Limits::default();
        let address = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        let other = limits.stranger(address(1));
        let crowd: Vec<Stranger> =
            (0..=STRANGERS_PER_ADDRESS).map(|_| limits.stranger(address(2))).collect();
        assert!(!is_evicted(&other));
        assert!(is_evicted(&crowd[0]));
        assert!(!is_evicted(&crowd[1]));
        drop(crowd);
        drop(other);
        assert!(limits.held().strangers.is_empty());
    }

    #[test]
    fn a_node_is_refused_beyond_its_share_until_it_closes_one() {
        let limits = Limits::default();
        let id = Id::random();
        let mut held: Vec<Member> =
            (0..PER_NODE).map(|_| limits.node(&id).expect("admitted")).collect();
        assert!(limits.node(&id).is_none());
        assert!(limits.node(&Id::random()).is_some());
        held.pop();
        held.push(limits.node(&id).expect("admitted again"));
        drop(held);
        assert!(limits.held().nodes.is_empty());
    }
}
