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

/// Nodes that were ready before the managers were out of reach, for the time until they must have
/// reported again.
#[derive(Debug, Default)]
pub struct Doubts {
    ready: BTreeSet<Id>,
    /// Those of them that were said to be down since.
    down: BTreeSet<Id>,
    until: Option<Instant>,
}

impl Doubts {
    /// Begins with the last state before the managers were out of reach.
    pub fn since(before: &ClusterState) -> Self {
        Self::lasting(DOUBT_FOR, before)
    }

    fn lasting(time: Duration, before: &ClusterState) -> Self {
        let ready = before.nodes.values().filter(|n| n.state == NodeState::Ready);
        let ready: BTreeSet<Id> = ready.map(|n| n.id.clone()).collect();
        let until = (!ready.is_empty()).then(|| Instant::now() + time);
        Self { ready, down: BTreeSet::new(), until }
    }

    /// The state with what is doubted as it was. What has become ready again is doubted no more.
    pub fn amend(&mut self, state: &mut ClusterState) {
        let Self { ready, down, .. } = self;
        ready.retain(|id| match state.nodes.get_mut(id) {
            None => false,
            Some(node) if node.state == NodeState::Down => {
                node.state = NodeState::Ready;
                down.insert(id.clone());
                true
            }
            // Heard again: if it is called down once more, it is.
            Some(_) => !down.contains(id),
        });
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
        let mut doubts = Doubts::lasting(Duration::from_millis(1), &nodes([Ready, Ready, Down]));
        // What is doubted may be heard of a little later.
        assert_eq!(ready(&mut doubts, &nodes([Ready, Ready, Down])), ["h1", "h2"]);
        let now = nodes([Down, Down, Down]);
        assert_eq!(ready(&mut doubts, &now), ["h1", "h2"]);
        // The manager hears the one, then it is really down.
        assert_eq!(ready(&mut doubts, &nodes([Ready, Down, Down])), ["h1", "h2"]);
        assert_eq!(ready(&mut doubts, &now), ["h2"]);
        doubts.over().await;
        assert_eq!(ready(&mut doubts, &now), Vec::<String>::new());
    }

    #[tokio::test]
    async fn where_nobody_was_ready_nothing_is_doubted_and_nothing_waited_for() {
        use NodeState::{Down, Ready};
        let mut doubts = Doubts::since(&ClusterState::default());
        assert_eq!(ready(&mut doubts, &nodes([Ready, Down, Down])), ["h1"]);
        assert!(doubts.over().now_or_never().is_none());
    }
}
