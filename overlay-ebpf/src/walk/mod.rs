//! The paths of packets through the programs of TC. Decisions are written once, over a
//! [`crate::family::Family`].

pub mod container;
pub mod container6;
pub mod decap;
pub mod host;
pub mod host4;
pub mod reject;
pub mod tunnel;
pub mod tunnel6;
pub mod xdp;
