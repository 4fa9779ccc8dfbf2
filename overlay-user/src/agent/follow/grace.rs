//! A grace period for nodes that a manager calls down right after it was out of reach.
//!
//! A manager that was cut off from all nodes has declared all of them down. So has a manager that
//! was started while its agents could not reach it. When the network heals, each agent hears this
//! before the manager has heard the other agents. These nodes never lost each other, and a service
//! must not lose its backends until the manager knows better.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::model::{ClusterState, Id, NodeState};

/// Length of the grace period. An agent that can reach the manager again does so within this time,
/// because it tries at least once in a second.
const GRACE: Duration = Duration::from_secs(3);

/// The nodes that were ready before the managers were out of reach. They count as ready until they
/// must have reported again.
#[derive(Debug, Default)]
pub struct Grace {
    ready: BTreeSet<Id>,
    /// Those that a manager has called down since.
    down: BTreeSet<Id>,
    until: Option<Instant>,
}

impl Grace {
    /// Begins with the last state before the managers were out of reach.
    pub fn since(before: &ClusterState) -> Self {
        Self::lasting(GRACE, before)
    }

    fn lasting(time: Duration, before: &ClusterState) -> Self {
        let ready = before.nodes.values().filter(|n| n.state == NodeState::Ready);
        let ready: BTreeSet<Id> = ready.map(|n| n.id.clone()).collect();
        let until = (!ready.is_empty()).then(|| Instant::now() + time);
        Self { ready, down: BTreeSet::new(), until }
    }

    /// Shows the nodes in grace as ready. A node that a manager has heard again leaves the grace
    /// period.
    pub fn amend(&mut self, state: &mut ClusterState) {
        let Self { ready, down, .. } = self;
        ready.retain(|id| match state.nodes.get_mut(id) {
            None => false,
            Some(node) if node.state == NodeState::Down => {
                node.state = NodeState::Ready;
                down.insert(id.clone());
                true
            }
            // Heard again. If a manager calls it down once more, it is down.
            Some(_) => !down.contains(id),
        });
    }

    /// Waits until the grace period is over and ends it; waits for ever outside of one.
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

    fn ready(grace: &mut Grace, state: &ClusterState) -> Vec<String> {
        let mut amended = state.clone();
        grace.amend(&mut amended);
        let ready = amended.nodes.values().filter(|n| n.state == NodeState::Ready);
        ready.map(|n| n.name.clone()).collect()
    }

    #[tokio::test]
    async fn ready_nodes_stay_ready_for_a_while_and_nodes_that_were_down_do_not() {
        use NodeState::{Down, Ready};
        let mut grace = Grace::lasting(Duration::from_millis(1), &nodes([Ready, Ready, Down]));
        // The managers may call the nodes down a little later.
        assert_eq!(ready(&mut grace, &nodes([Ready, Ready, Down])), ["h1", "h2"]);
        let now = nodes([Down, Down, Down]);
        assert_eq!(ready(&mut grace, &now), ["h1", "h2"]);
        // The manager hears h1 and then calls it down: it is down.
        assert_eq!(ready(&mut grace, &nodes([Ready, Down, Down])), ["h1", "h2"]);
        assert_eq!(ready(&mut grace, &now), ["h2"]);
        grace.over().await;
        assert_eq!(ready(&mut grace, &now), Vec::<String>::new());
    }

    #[tokio::test]
    async fn without_a_node_that_was_ready_there_is_no_grace_period() {
        use NodeState::{Down, Ready};
        let mut grace = Grace::since(&ClusterState::default());
        assert_eq!(ready(&mut grace, &nodes([Ready, Down, Down])), ["h1"]);
        assert!(grace.over().now_or_never().is_none());
    }
}
