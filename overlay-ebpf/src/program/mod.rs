//! One file for each program, from its entry point on.

pub mod container;
pub mod container6;
pub mod host6;
pub mod socket;
pub mod tunnel6;
pub mod underlay;
pub mod underlay6;
pub mod xdp;
pub mod xdp6;
