//! The inputs of compile besides the cluster's state.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use overlay_common::Mac;

use crate::model::Id;

/// The node's own facts that are not part of the cluster's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalFacts {
    /// Index of the host-side interface of each wired endpoint.
    pub links: BTreeMap<Id, u32>,
    /// Cookie of the network namespace of each wired endpoint, if its sockets are balanced.
    pub netns: BTreeMap<Id, u64>,
    /// Index of the program's end of the host link and MAC of the host's end.
    pub host_link: Option<(u32, Mac)>,
    /// Addresses of the host on which published ports answer.
    pub addresses: Vec<Ipv4Addr>,
    /// IPv6 addresses of the host on which published ports of dual-stack networks answer.
    pub addresses6: Vec<Ipv6Addr>,
    /// Interfaces that lead outside, by index, with the source address of flows that leave there.
    pub uplinks: BTreeMap<u32, Ipv4Addr>,
    /// MTU of the underlay in bytes, without the Ethernet header.
    pub underlay_mtu: u32,
}
