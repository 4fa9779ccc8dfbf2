//! What the agent shows: its status, and what the maps hold, in words.

pub mod address_ids;
pub mod flows;
pub mod ipvs;
pub mod lb_tables;
pub mod names;
pub mod status;
pub mod tables;
pub mod traffic;
