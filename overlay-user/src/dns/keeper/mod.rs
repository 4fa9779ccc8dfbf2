//! Keeps the containers' DNS sockets open while no daemon runs.
//!
//! A socket dies with the last process that has it open, and a query to a closed socket fails at
//! once. So a second, small process has a copy of each socket. During a restart of the daemon,
//! queries wait in the sockets' queues; the next daemon takes the sockets over and answers them. If
//! a daemon is killed after it has read a query and before it has answered it, the client must
//! repeat the query.
//!
//! ```text
//! daemon  --store, drop-->  sockets.sock  keeper: container -> namespace, UDP and TCP socket
//! next daemon  --take-->                    (single-threaded, never reads from what it keeps)
//! ```
//! The keeper does nothing else, so it need not be replaced together with the daemon. DNS also
//! works without it.

mod client;
mod process;
mod protocol;
mod server;
#[cfg(test)]
pub(super) mod testing;

pub use client::{Keeper, KeeperError};
pub use process::keep_sockets;

use super::sockets::NamespaceId;
