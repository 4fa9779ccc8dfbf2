//! Packets: their bytes, headers and flows. This folder does not depend on services.

pub mod ecn;
pub mod flow;
pub mod flow6;
pub mod fragment;
pub mod frame;
pub mod ipv4;
pub mod ipv6;
pub mod related;
pub mod transport;
pub mod xdp_flow;
pub mod xdp_frame;
