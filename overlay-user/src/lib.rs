//! `overlay`: cross-host container networking whose packet path is eBPF.
//!
//! State flows one way: [`store`] -> watch -> [`agent`] (pure) -> [`datapath::diff`] ->
//! an idempotent apply. The kernel is behind two traits, [`datapath::Datapath`] and
//! [`link::Links`].

pub mod agent;
pub mod api;
pub mod cli;
pub mod datapath;
pub mod dns;
pub mod file;
pub mod link;
pub mod lock;
pub mod manager;
pub mod model;
pub mod packet;
pub mod paths;
pub mod pki;
pub mod store;
