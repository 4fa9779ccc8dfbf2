//! The API of the daemon on this host: the server on its unix socket, and a client.

mod calls;
mod client;
pub mod server;

pub use client::{Events, LocalClient};
pub use server::serve;
