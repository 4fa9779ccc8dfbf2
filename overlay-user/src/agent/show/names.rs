//! Names beside the numbers that the maps have.

use std::{collections::HashMap, net::IpAddr};

use overlay_common::{Be32, Ip6, UNDERLAY_VNI};

use crate::{
    agent::{Agent, HOST_MODE, host::PROGRAM_END, lock, show::tables::ip},
    {datapath::Datapath, link::Links, model::ClusterState},
};

impl<D: Datapath, L: Links> Agent<D, L> {
    /// What the numbers in the maps are called.
    pub(in crate::agent) fn names(&self) -> Names {
        let mut names = Names::new(&self.state());
        for container in self.containers.all() {
            let facts = lock(&self.facts);
            for wire in container.record().wires {
                if let Some(ifindex) = facts.links.get(&wire.endpoint) {
                    names.interfaces.insert(*ifindex, wire.host_name);
                }
            }
        }
        for way in lock(&self.report).ways_out.clone() {
            names.interfaces.insert(way.ifindex, way.name);
        }
        if let Some((ifindex, _)) = lock(&self.facts).host_link {
            names.interfaces.insert(ifindex, PROGRAM_END.to_owned());
        }
        names
    }
}

/// What the numbers of the maps are called.
#[derive(Default)]
pub(in crate::agent) struct Names {
    pub(in crate::agent) networks: HashMap<u32, String>,
    pub(in crate::agent) nodes: HashMap<Be32, String>,
    vteps: HashMap<Be32, IpAddr>,
    pub(in crate::agent) services: HashMap<u32, String>,
    pub(in crate::agent) backends: HashMap<u32, String>,
    pub(in crate::agent) endpoints: HashMap<(u32, Be32), String>,
    pub(in crate::agent) endpoints6: HashMap<(u32, Ip6), String>,
    addresses6: HashMap<(u32, Be32), Ip6>,
    pub(in crate::agent) interfaces: HashMap<u32, String>,
}

impl Names {
    pub(in crate::agent) fn new(state: &ClusterState) -> Self {
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
    pub(in crate::agent) fn address(&self, node: Be32) -> IpAddr {
        self.vteps.get(&node).copied().unwrap_or(IpAddr::V4(node.into()))
    }

    /// As [`Names::address`]; `-` for none.
    pub(in crate::agent) fn vtep(&self, node: Be32) -> String {
        if node == Be32::ZERO { ip(node) } else { self.address(node).to_string() }
    }

    /// Name of a network.
    pub(in crate::agent) fn network(&self, vni: u32) -> Option<String> {
        self.networks.get(&vni).cloned()
    }

    /// Name of a service, by its number.
    pub(in crate::agent) fn service(&self, number: u32) -> Option<String> {
        self.services.get(&number).cloned()
    }

    /// Name of a backend, by its number.
    pub(in crate::agent) fn backend(&self, number: u32) -> Option<String> {
        self.backends.get(&number).cloned()
    }

    /// Name of an interface of this host; its number where it is none of ours.
    pub(in crate::agent) fn interface(&self, ifindex: u32) -> String {
        self.interfaces.get(&ifindex).cloned().unwrap_or_else(|| ifindex.to_string())
    }

    /// The IPv6 address of the endpoint or VIP that has an IPv4 address of a network.
    pub(in crate::agent) fn address6(&self, vni: u32, address: Be32) -> Option<Ip6> {
        self.addresses6.get(&(vni, address)).copied()
    }

    /// Name of who has an address of a network; of a node, where it is the node itself.
    pub(in crate::agent) fn endpoint(&self, vni: u32, address: Be32) -> Option<String> {
        self.endpoints.get(&(vni, address)).cloned()
    }
}

/// The name of a key; `-` for none.
pub(in crate::agent) fn named<K: std::hash::Hash + Eq>(
    names: &HashMap<K, String>,
    key: &K,
) -> String {
    names.get(key).cloned().unwrap_or_else(|| "-".to_owned())
}
