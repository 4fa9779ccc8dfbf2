//! The DNS server of every container: 127.0.0.11, port 53, UDP and TCP, inside its namespace.
//!
//! The names of the cluster come from the same state as the maps. [`Directory`] is the part of the
//! state that this host's containers can resolve, and [`fn@resolve`] is a pure function over it.
//! All other queries go to the upstreams through sockets in the agent's own namespace.
//!
//! The wire format is hickory-proto's, but the server is our own. hickory-server encodes every
//! reply again, so it would not relay an upstream's answer unchanged. It also starts a task for
//! every query, so it has no place for a limit.

mod directory;
mod forward;
mod keeper;
mod message;
mod resolv_conf;
mod resolve;
mod server;
mod servers;
mod sockets;
#[cfg(test)]
mod testing;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

pub use directory::Directory;
pub use keeper::{Keeper, KeeperError, keep_sockets};
pub use resolv_conf::{MAX_NAMESERVERS, ResolvConfError, read_resolv_conf};
pub use resolve::{Answer, resolve};
pub use servers::DnsServers;
pub use sockets::DnsError;

use crate::model::ClusterState;

/// Address of a container's server. It is Docker's, so that images that rely on it keep working.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Port of the server.
pub const PORT: u16 = 53;

/// Time to live of our own records, in seconds.
///
/// It is shorter than a service's default drain time (5 s). So a client that caches an answer
/// forgets a draining backend before that backend stops, and a moved VIP or address is stale for no
/// longer than this. It is not 0, because some caches read 0 as "ask for every packet" and others
/// as "for ever".
pub const TTL_SECONDS: u32 = 2;

/// The data from which all servers answer. It is replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct DnsView {
    /// The last received state of the cluster.
    pub state: Arc<ClusterState>,
    /// Servers for all other names, in the order of use. The first [`MAX_NAMESERVERS`] usable ones
    /// count.
    pub upstreams: Vec<SocketAddr>,
}

/// Limits of one container's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Timeout of one upstream, for UDP and a repetition over TCP together.
    pub upstream_timeout: Duration,
    /// Most forwarded queries under way; further ones are rejected. The limit is per container, so
    /// that one container cannot use up the capacity of the others.
    pub forwards: usize,
    /// Most open TCP connections; further ones are closed.
    pub connections: usize,
    /// Longest silence on a TCP connection.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    /// Docker's values: 4 s and 1024. With a timeout of 4 s the second upstream still has time to
    /// answer within a resolver's usual 5 s.
    fn default() -> Self {
        Self {
            upstream_timeout: Duration::from_secs(4),
            forwards: 1024,
            connections: 64,
            idle_timeout: Duration::from_secs(10),
        }
    }
}
