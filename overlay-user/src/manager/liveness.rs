//! What is heard from the agents. Kept in memory alone: at a thousand nodes a write per heartbeat
//! would be all that the store does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{plan::node, shared::Shared};
use crate::{
    api::Heartbeat,
    model::{ClusterState, Id, Node, NodeState},
};

/// What was last heard from each node.
pub(super) struct Liveness {
    /// Since when this manager listens: nobody was silent for longer, as far as it knows.
    since: Instant,
    heard: Mutex<HashMap<Id, Heard>>,
    changed: watch::Sender<()>,
}

struct Heard {
    at: Instant,
    /// Highest revision that the node's maps show.
    applied: u64,
}

impl Liveness {
    pub fn new() -> Self {
        Self { since: Instant::now(), heard: Mutex::default(), changed: watch::channel(()).0 }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Id, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a heartbeat.
    pub fn heard(&self, heartbeat: &Heartbeat) {
        let heard = Heard { at: Instant::now(), applied: heartbeat.applied };
        self.map().insert(heartbeat.node.clone(), heard);
        self.changed.send_replace(());
    }

    /// Tells when something was heard.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Names of the ready nodes that have not applied a revision.
    pub fn lagging(&self, state: &ClusterState, revision: u64) -> Vec<String> {
        let heard = self.map();
        let applied = |node: &Node| heard.get(&node.id).map_or(0, |h| h.applied);
        let ready = state.nodes.values().filter(|n| n.state == NodeState::Ready);
        ready.filter(|n| applied(n) < revision).map(|n| n.name.clone()).collect()
    }

    /// Ready nodes that have been silent for longer than the timeout. Forgets nodes that are gone.
    fn silent(&self, state: &ClusterState, timeout: Duration) -> Vec<Id> {
        let mut heard = self.map();
        heard.retain(|id, _| state.nodes.contains_key(id));
        let last = |node: &Node| heard.get(&node.id).map_or(self.since, |h| h.at);
        let ready = state.nodes.values().filter(|n| n.state == NodeState::Ready);
        ready.filter(|n| last(n).elapsed() > timeout).map(|n| n.id.clone()).collect()
    }
}

/// Marks silent nodes down, until the manager is gone.
pub(super) fn spawn_watchdog(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            let Some(timeout) = shared.upgrade().map(|s| timeout(&s.state())) else { return };
            // Often enough that a node is called down at most a quarter of the timeout late.
            let pause = (timeout / 4).clamp(Duration::from_millis(25), Duration::from_secs(1));
            tokio::time::sleep(pause).await;
            let Some(shared) = shared.upgrade() else { return };
            let silent = shared.liveness.silent(&shared.state(), timeout);
            if silent.is_empty() {
                continue;
            }
            let marked = tokio::task::spawn_blocking(move || {
                shared.write(|state, now| {
                    // Those heard of since are spared.
                    let silent = shared.liveness.silent(state, timeout);
                    node::mark(state, &silent, NodeState::Down, now)
                })
            });
            if let Ok(Err(e)) = marked.await {
                tracing::error!("marking silent nodes down: {e}");
            }
        }
    });
}

fn timeout(state: &ClusterState) -> Duration {
    Duration::from_millis(state.cluster.as_ref().map_or(u64::MAX, |c| c.node_timeout_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Availability, Role};

    fn state(nodes: &[(&str, NodeState)]) -> ClusterState {
        let mut cluster = ClusterState::default();
        for (name, state) in nodes {
            let id = Id::from_text(*name);
            let node = Node {
                id: id.clone(),
                name: (*name).to_owned(),
                role: Role::Agent,
                created: jiff::Timestamp::UNIX_EPOCH,
                data_path_addr: [172, 16, 1, 10].into(),
                api_addr: None,
                ingress_ip: [10, 255, 0, 2].into(),
                state: *state,
                availability: Availability::Active,
            };
            cluster.nodes.insert(id, node);
        }
        cluster
    }

    fn heard(liveness: &Liveness, name: &str, applied: u64) {
        liveness.heard(&Heartbeat { node: Id::from_text(name), applied });
    }

    #[test]
    fn nodes_not_heard_of_yet_are_silent_since_the_start_and_not_for_ever() {
        let liveness = Liveness::new();
        let state = state(&[("a", NodeState::Ready), ("b", NodeState::Down)]);
        assert!(liveness.silent(&state, Duration::from_secs(3600)).is_empty());
        assert_eq!(liveness.silent(&state, Duration::ZERO), [Id::from_text("a")]);
    }

    #[test]
    fn what_was_heard_of_nodes_that_are_gone_is_forgotten() {
        let liveness = Liveness::new();
        heard(&liveness, "a", 1);
        heard(&liveness, "gone", 1);
        liveness.silent(&state(&[("a", NodeState::Ready)]), Duration::ZERO);
        assert_eq!(liveness.map().keys().collect::<Vec<_>>(), [&Id::from_text("a")]);
    }

    #[test]
    fn ready_nodes_lag_until_they_say_that_they_applied_the_revision() {
        let liveness = Liveness::new();
        let nodes = [("a", NodeState::Ready), ("b", NodeState::Ready), ("c", NodeState::Down)];
        let state = state(&nodes);
        heard(&liveness, "a", 7);
        assert_eq!(liveness.lagging(&state, 7), ["b"]);
        heard(&liveness, "b", 6);
        assert_eq!(liveness.lagging(&state, 7), ["b"]);
        heard(&liveness, "b", 8);
        assert!(liveness.lagging(&state, 7).is_empty());
        // An agent that starts anew shows nothing until it has reconciled.
        heard(&liveness, "a", 0);
        assert_eq!(liveness.lagging(&state, 7), ["a"]);
    }
}
