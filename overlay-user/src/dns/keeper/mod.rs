//! Keeps the containers' DNS sockets open while no daemon runs.
//!
//! A socket dies with the last process that has it, and a query to a closed one fails at once. So a
//! second, tiny process has a copy of each: what is asked while the daemon is restarted waits in
//! the socket's queue, and the next daemon takes the sockets over and answers. What a daemon had
//! read and not answered when it was killed is the client's to repeat.
//!
//! ```text
//! daemon  --store, drop-->  sockets.sock  keeper: container -> namespace, UDP and TCP socket
//! next daemon  --take-->                    (single-threaded, never reads from what it keeps)
//! ```
//! The keeper does nothing else, so that it need not be replaced when the daemon is. Without it
//! names are served all the same.

mod client;
mod process;
mod protocol;
mod server;
#[cfg(test)]
pub(super) mod testing;

pub use client::{Keeper, KeeperError};
pub use process::keep_sockets;

use super::sockets::NamespaceId;
