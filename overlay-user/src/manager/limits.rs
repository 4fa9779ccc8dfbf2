//! How many connections one peer may hold, so that a hostile one blocks nobody else.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::model::Id;

/// Connections without a certificate from one address.
const STRANGERS_PER_ADDRESS: usize = 64;
/// Connections without a certificate altogether.
const STRANGERS: usize = 1024;
/// Connections of one node.
const PER_NODE: usize = 64;

/// The connections held.
#[derive(Clone, Default)]
pub(super) struct Limits(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// Oldest first.
    strangers: VecDeque<(IpAddr, Arc<Notify>)>,
    nodes: HashMap<Id, usize>,
}

impl Limits {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection that has shown no certificate yet. Where there are too many, the oldest
    /// has to go: who means it well is through the handshake before it gets old.
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

    /// Admits a connection of a node, if it has not too many.
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

/// A connection without a certificate; counted until dropped.
pub(super) struct Stranger {
    limits: Limits,
    evicted: Arc<Notify>,
}

impl Stranger {
    /// Waits until the connection has to go.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.limits.held().strangers.retain(|(_, other)| !Arc::ptr_eq(other, &self.evicted));
    }
}

/// A connection of a node; counted until dropped.
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
