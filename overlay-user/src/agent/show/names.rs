//! Names beside the numbers that the maps have.

use std::{collections::HashMap, net::IpAddr};

use overlay_common::{Be32, Ip6, UNDERLAY_VNI};

use super::words::ip;
use crate::{agent::compile::HOST_MODE, model::ClusterState};

/// The names of the numbers in the maps.
#[derive(Default)]
pub struct Names {
    pub networks: HashMap<u32, String>,
    pub nodes: HashMap<Be32, String>,
    vteps: HashMap<Be32, IpAddr>,
    pub services: HashMap<u32, String>,
    pub backends: HashMap<u32, String>,
    pub endpoints: HashMap<(u32, Be32), String>,
    pub endpoints6: HashMap<(u32, Ip6), String>,
    addresses6: HashMap<(u32, Be32), Ip6>,
    pub interfaces: HashMap<u32, String>,
}

impl Names {
    /// The names of a state; interfaces are to be added.
    pub fn new(state: &ClusterState) -> Self {
        let mut names = Self::default();
        for network in state.networks.values() {
            names.networks.insert(network.vni, network.name.clone());
        }
        let ingress = state.ingress().map_or(UNDERLAY_VNI, |n| n.vni);
        for node in state.nodes.values() {
            names.nodes.insert(node.vtep(), node.name.clone());
            names.vteps.insert(node.vtep(), node.data_path_addr);
            names.endpoints.insert((ingress, node.ingress_ip.into()), node.name.clone());
        }
        for service in state.services.values() {
            for on in &service.networks {
                names.services.insert(on.number, service.name.clone());
                names.services.insert(on.number | HOST_MODE, service.name.clone());
                if let (Some(network), Some(vip), Some(vip6)) =
                    (state.networks.get(&on.network), on.vip, on.vip6)
                {
                    names.addresses6.insert((network.vni, vip.into()), vip6.into());
                }
            }
        }
        for endpoint in state.endpoints.values() {
            names.backends.insert(endpoint.number, endpoint.name.clone());
            if let Some(network) = state.networks.get(&endpoint.network) {
                names.endpoints.insert((network.vni, endpoint.ip.into()), endpoint.name.clone());
                if let Some(ip6) = endpoint.ip6 {
                    names.endpoints6.insert((network.vni, ip6.into()), endpoint.name.clone());
                    names.addresses6.insert((network.vni, endpoint.ip.into()), ip6.into());
                }
            }
        }
        names
    }

    /// VTEP of a node, which the maps may have as a number only.
    pub fn address(&self, node: Be32) -> IpAddr {
        self.vteps.get(&node).copied().unwrap_or(IpAddr::V4(node.into()))
    }

    /// As [`Names::address`]; `-` for none.
    pub fn vtep(&self, node: Be32) -> String {
        if node == Be32::ZERO { ip(node) } else { self.address(node).to_string() }
    }

    /// Name of a network.
    pub fn network(&self, vni: u32) -> Option<String> {
        self.networks.get(&vni).cloned()
    }

    /// Name of a service, by its number.
    pub fn service(&self, number: u32) -> Option<String> {
        self.services.get(&number).cloned()
    }

    /// Name of a backend, by its number.
    pub fn backend(&self, number: u32) -> Option<String> {
        self.backends.get(&number).cloned()
    }

    /// Name of an interface of this host; its number where it is none of ours.
    pub fn interface(&self, ifindex: u32) -> String {
        self.interfaces.get(&ifindex).cloned().unwrap_or_else(|| ifindex.to_string())
    }

    /// The IPv6 address of the endpoint or VIP that has an IPv4 address of a network.
    pub fn address6(&self, vni: u32, address: Be32) -> Option<Ip6> {
        self.addresses6.get(&(vni, address)).copied()
    }

    /// Name of the endpoint or node that has an address of a network.
    pub fn endpoint(&self, vni: u32, address: Be32) -> Option<String> {
        self.endpoints.get(&(vni, address)).cloned()
    }
}

/// The name of a key; `-` for none.
pub fn named<K: std::hash::Hash + Eq>(names: &HashMap<K, String>, key: &K) -> String {
    names.get(key).cloned().unwrap_or_else(|| "-".to_owned())
}
