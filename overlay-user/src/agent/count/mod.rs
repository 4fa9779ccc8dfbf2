//! What the agent counts: the flows of draining backends, and the sockets of containers.

pub mod draining;
pub mod sockets;
