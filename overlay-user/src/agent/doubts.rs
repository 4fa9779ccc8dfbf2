//! What a manager says about other nodes right after it was out of reach is not believed at once.
//!
//! A manager that was cut off from everybody has called everybody down, and so has one that was
//! started when its agents could not reach it yet. When the network heals, each agent hears of that
//! before the manager has heard the other agents. They were never away from each other, and a service
//! must not lose its backends for the moment until the manager knows.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::model::{ClusterState, Id, NodeState};

/// For how long: agents that can reach the manager again do within this time, as each tries every
/// few seconds at most.
const DOUBT_FOR: Duration = Duration::from_secs(3);

/// Nodes that were ready when the managers were last heard, and are said to be down now.
#[derive(Debug, Default)]
pub struct Doubts {
    nodes: BTreeSet<Id>,
    until: Option<Instant>,
}

impl Doubts {
    /// Compares the first state after a time without managers with the last one before it.
    pub fn about(before: &ClusterState, now: &ClusterState) -> Self {
        Self::lasting(DOUBT_FOR, before, now)
    }

    fn lasting(time: Duration, before: &ClusterState, now: &ClusterState) -> Self {
        let was_ready =
            |id: &&Id| before.nodes.get(*id).is_some_and(|n| n.state == NodeState::Ready);
        let down = now.nodes.values().filter(|n| n.state == NodeState::Down).map(|n| &n.id);
        let nodes: BTreeSet<Id> = down.filter(was_ready).cloned().collect();
        let until = (!nodes.is_empty()).then(|| Instant::now() + time);
        Self { nodes, until }
    }

    /// The state with what is doubted as it was. What has become ready is doubted no more.
    pub fn amend(&mut self, state: &mut ClusterState) {
        self.nodes.retain(|id| state.nodes.get(id).is_some_and(|n| n.state == NodeState::Down));
        for id in &self.nodes {
            if let Some(node) = state.nodes.get_mut(id) {
                node.state = NodeState::Ready;
            }
        }
        if self.nodes.is_empty() {
            self.until = None;
        }
    }

    /// Waits until the doubts are over, and forgets them; for ever where there are none.
    pub async fn over(&mut self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::agent::testing::TestCluster;

    fn nodes(states: [NodeState; 3]) -> ClusterState {
        let mut cluster = TestCluster::with_nodes(3);
        for (name, state) in ["h1", "h2", "h3"].into_iter().zip(states) {
            cluster.node_mut(name).state = state;
        }
        cluster.state
    }

    fn ready(doubts: &mut Doubts, state: &ClusterState) -> Vec<String> {
        let mut amended = state.clone();
        doubts.amend(&mut amended);
        let ready = amended.nodes.values().filter(|n| n.state == NodeState::Ready);
        ready.map(|n| n.name.clone()).collect()
    }

    #[tokio::test]
    async fn who_was_ready_is_for_a_while_and_who_was_down_is_not() {
        use NodeState::{Down, Ready};
        let before = nodes([Ready, Ready, Down]);
        let now = nodes([Down, Down, Down]);
        let mut doubts = Doubts::lasting(Duration::from_millis(1), &before, &now);
        assert_eq!(ready(&mut doubts, &now), ["h1", "h2"]);
        // The manager hears the one, then it is really down.
        assert_eq!(ready(&mut doubts, &nodes([Ready, Down, Down])), ["h1", "h2"]);
        assert_eq!(ready(&mut doubts, &now), ["h2"]);
        doubts.over().await;
        assert_eq!(ready(&mut doubts, &now), Vec::<String>::new());
    }

    #[tokio::test]
    async fn without_doubts_nothing_is_waited_for() {
        use NodeState::{Down, Ready};
        let state = nodes([Ready, Down, Down]);
        let mut doubts = Doubts::about(&ClusterState::default(), &state);
        assert_eq!(ready(&mut doubts, &state), ["h1"]);
        assert!(doubts.over().now_or_never().is_none());
    }
}
