//! The DNS server of every container: 127.0.0.11, port 53, UDP and TCP, inside its namespace.
//!
//! The names of the cluster come from the state that the maps are compiled from: [`Directory`] is
//! the part of it that this host's containers may see, [`fn@resolve`] is a pure function over that.
//! Everything else goes to the upstreams through sockets of the agent's own namespace.
//!
//! The wire format is hickory-proto's. The server around it is our own: hickory-server encodes
//! every reply anew, which would not relay an upstream's answer as it came, and it starts a task
//! for every query, which leaves no place for a limit.

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

/// Where a container's server listens: Docker's address, so that images which know it keep working.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Port of the server.
pub const PORT: u16 = 53;

/// Time to live of our own records, in seconds.
///
/// Shorter than a service's default drain time (5 s): a client that caches what it was told has
/// forgotten a draining backend before that one stops, and a VIP or address that moved is stale for
/// no longer. Not 0, which some caches read as "ask for every packet" and others as "for ever".
pub const TTL_SECONDS: u32 = 2;

/// What all servers answer from; swapped as a whole.
#[derive(Clone, Debug, Default)]
pub struct DnsView {
    /// The cluster as last heard of.
    pub state: Arc<ClusterState>,
    /// Where other names are asked, in this order; the first [`MAX_NAMESERVERS`] usable ones count.
    pub upstreams: Vec<SocketAddr>,
}

/// What one container's server may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long one upstream may take, UDP and a repetition over TCP together.
    pub upstream_timeout: Duration,
    /// Forwarded queries under way at once; further ones are refused. Per container, so that one
    /// cannot use up what the others need.
    pub forwards: usize,
    /// Open TCP connections; further ones are closed.
    pub connections: usize,
    /// How long a TCP connection may be silent.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    /// Docker's 4 s and 1024. Two upstreams of 4 s leave the second one time to answer before a
    /// resolver's usual 5 s are over.
    fn default() -> Self {
        Self {
            upstream_timeout: Duration::from_secs(4),
            forwards: 1024,
            connections: 64,
            idle_timeout: Duration::from_secs(10),
        }
    }
}
