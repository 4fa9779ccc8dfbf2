//! Tests of the rules, one file per kind of object, and random sequences of operations.

mod endpoint;
mod init;
mod ipam;
mod ipam6;
mod network;
mod node;
mod port;
mod random;
mod service;
