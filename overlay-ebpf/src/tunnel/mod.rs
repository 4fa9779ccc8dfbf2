//! The tunnel between nodes: VXLAN headers, peers, next hops, what the kernel's device does for the programs, head-end replication.

pub mod encap;
pub mod fallback;
pub mod head_end;
pub mod next_hop;
pub mod outer;
pub mod peers;
pub mod underlay;
pub mod vxlan;
pub mod vxlan6;
