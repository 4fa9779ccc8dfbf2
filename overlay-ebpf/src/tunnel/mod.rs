//! The tunnel between nodes: VXLAN headers, peers, next hops, the kernel fallback, head-end
//! replication.

pub mod encap;
pub mod fallback;
pub mod head_end;
pub mod next_hop;
pub mod outer;
pub mod peers;
pub mod underlay;
pub mod vxlan;
pub mod vxlan6;
