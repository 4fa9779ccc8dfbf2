//! Changes of the cluster's state, as the store commits them and watchers receive them.

use serde::{Deserialize, Serialize};

use super::{Cluster, ClusterState, Endpoint, Id, Network, Node, Service};

/// The kinds of objects; the first part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `cluster/…`
    Cluster,
    /// `network/…`
    Network,
    /// `node/…`
    Node,
    /// `service/…`
    Service,
    /// `endpoint/…`
    Endpoint,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Cluster, Self::Network, Self::Node, Self::Service, Self::Endpoint];

    /// Returns the first part of the key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Network => "network",
            Self::Node => "node",
            Self::Service => "service",
            Self::Endpoint => "endpoint",
        }
    }
}

/// An object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "object", rename_all = "lowercase")]
pub enum Object {
    /// The cluster.
    Cluster(Cluster),
    /// A network.
    Network(Network),
    /// A node.
    Node(Node),
    /// A service.
    Service(Service),
    /// An endpoint.
    Endpoint(Endpoint),
}

impl Object {
    /// Returns its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Cluster(_) => Kind::Cluster,
            Self::Network(_) => Kind::Network,
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Endpoint(_) => Kind::Endpoint,
        }
    }

    /// Returns its identifier.
    pub const fn id(&self) -> &Id {
        match self {
            Self::Cluster(o) => &o.id,
            Self::Network(o) => &o.id,
            Self::Node(o) => &o.id,
            Self::Service(o) => &o.id,
            Self::Endpoint(o) => &o.id,
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Create or replace.
    Put(Object),
    /// Remove.
    Delete {
        /// Kind of the object.
        kind: Kind,
        /// Its identifier.
        id: Id,
    },
}

/// One line of a watch stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchEvent {
    /// The whole state, at the start of a stream or after the watcher fell behind.
    Snapshot(ClusterState),
    /// The changes of one transaction.
    Changes {
        /// Revision after the transaction.
        revision: u64,
        /// The changes of the transaction, in order.
        changes: Vec<Change>,
    },
    /// A sign of life without a change. It is sent every half second, so that both sides notice a
    /// dead connection.
    Alive {
        /// Current revision.
        revision: u64,
    },
}
