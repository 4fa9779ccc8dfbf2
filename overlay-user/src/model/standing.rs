//! Whether an endpoint takes new flows, and if not, why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Availability, ClusterState, Endpoint, EndpointState, Health, NodeState};

/// Whether an endpoint takes new flows as a backend, and if not, why. Flows that it has go on in
/// any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It does.
    Running,
    /// It is being wired, or its service does not listen yet.
    Starting,
    /// It is being taken out.
    Draining,
    /// It has passed no health check yet.
    Unchecked,
    /// Its health checks fail.
    Unhealthy,
    /// Its node is drained.
    NodeDrained,
    /// Nothing but that its node is not heard of.
    NodeDown,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Unchecked => "not yet healthy",
            Self::Unhealthy => "unhealthy",
            Self::NodeDrained => "node drained",
            Self::NodeDown => "node down",
        })
    }
}

impl ClusterState {
    /// How an endpoint stands. One whose node does not exist is that of a node that is down.
    pub fn standing(&self, endpoint: &Endpoint) -> Standing {
        match endpoint.state {
            EndpointState::Starting => return Standing::Starting,
            EndpointState::Draining => return Standing::Draining,
            EndpointState::Running => {}
        }
        match endpoint.health {
            Health::Starting => return Standing::Unchecked,
            Health::Unhealthy => return Standing::Unhealthy,
            Health::Unknown | Health::Healthy => {}
        }
        let Some(node) = self.nodes.get(&endpoint.node) else { return Standing::NodeDown };
        match (node.availability, node.state) {
            // Only backends are drained with their node.
            (Availability::Drain, _) if endpoint.service.is_some() => Standing::NodeDrained,
            (_, NodeState::Down) => Standing::NodeDown,
            (_, NodeState::Ready) => Standing::Running,
        }
    }
}
