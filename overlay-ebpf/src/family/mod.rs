//! What differs between IPv4 and IPv6.

pub mod addr6_id;
pub mod underlay;
