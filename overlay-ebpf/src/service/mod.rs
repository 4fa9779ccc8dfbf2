//! Services: from a flow to its backend and back. Tracked flows, schedulers, published ports, DSR,
//! source NAT and statistics.

pub mod collision;
pub mod conntrack;
pub mod dsr;
pub mod dsr6;
pub mod published;
pub mod reverse;
pub mod route;
pub mod scheduler;
pub mod snat;
pub mod snat_flow;
pub mod snat_limit;
pub mod socket;
pub mod stale;
pub mod stats;
