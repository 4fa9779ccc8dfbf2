//! One file for each program, from its entry point on. Code that two programs share is in
//! [`crate::walk`].

pub mod container;
pub mod container_flow6;
pub mod host_flow6;
pub mod outside;
pub mod socket;
pub mod tunnel_flow6;
pub mod underlay;
pub mod vxlan;
pub mod xdp;
