//! Whether an endpoint takes new flows, and the reason if it does not.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Availability, ClusterState, Endpoint, EndpointState, Health, NodeState};

/// Whether an endpoint takes new flows as a backend, and the reason if it does not. Its existing
/// flows continue in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It takes new flows.
    Running,
    /// It is being wired, or its service does not listen yet.
    Starting,
    /// It is draining.
    Draining,
    /// It has passed no health check yet.
    Unchecked,
    /// Its health checks fail.
    Unhealthy,
    /// Its node is draining.
    NodeDrained,
    /// Its node is down. There is no other reason.
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
    /// Returns the standing of an endpoint. If its node does not exist, its node counts as down.
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
            // Draining a node drains only its backends.
            (Availability::Drain, _) if endpoint.service.is_some() => Standing::NodeDrained,
            (_, NodeState::Down) => Standing::NodeDown,
            (_, NodeState::Ready) => Standing::Running,
        }
    }
}
