//! The last step of a packet: to a container, up the host's stack, or out to a client.

pub mod deliver;
pub mod route;
