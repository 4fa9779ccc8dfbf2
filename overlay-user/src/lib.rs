//! `overlay`: a container network across hosts with a datapath in eBPF.
//!
//! State flows in one direction: [`store`] -> watch -> [`agent`] (pure) -> [`datapath::diff`] -> an
//! idempotent apply. Two traits hide the kernel: [`datapath::Datapath`] and [`link::Links`].

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
