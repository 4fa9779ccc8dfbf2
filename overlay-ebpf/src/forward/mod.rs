//! Where packets go: into a container, up the host's stack, out to a client.

pub mod deliver;
pub mod route;
