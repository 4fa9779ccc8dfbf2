//! What `inspect` prints: pure functions from the cluster's state to the JSON that Docker prints.

mod node;
mod service;

use std::{collections::BTreeMap, net::Ipv6Addr};

use jiff::Timestamp;
use serde::Serialize;

pub use self::{
    node::{NodeInspect, node},
    service::{ServiceInspect, service},
};
use crate::model::{ClusterState, Driver, Endpoint, Id, Multicast, Network, Port, Service};

/// Driver option that sets a network's VNI.
pub const OPTION_VNI: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// Driver option that sets the MTU of a network's containers.
pub const OPTION_MTU: &str = "com.docker.network.driver.mtu";

/// Driver option that says what becomes of multicast and broadcast: `drop` or `replicate`.
pub const OPTION_MULTICAST: &str = "multicast";

/// A network as `docker network inspect` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkInspect {
    name: String,
    id: String,
    created: Timestamp,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFrom,
    config_only: bool,
    containers: BTreeMap<String, ContainerInspect>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<Vec<PeerInspect>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<BTreeMap<String, ServiceOnNetwork>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    options: Option<BTreeMap<String, String>>,
    config: Vec<IpamConfig>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpamConfig {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    ip_range: Option<String>,
    gateway: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auxiliary_addresses: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFrom {
    network: String,
}

/// One container of a network.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ContainerInspect {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "MacAddress")]
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

/// A node that has endpoints on the network.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct PeerInspect {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "IP")]
    ip: String,
}

/// A service on the network, shown with `--verbose`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ServiceOnNetwork {
    #[serde(rename = "VIP")]
    vip: String,
    #[serde(rename = "VIP6", skip_serializing_if = "Option::is_none")]
    vip6: Option<Ipv6Addr>,
    #[serde(rename = "Ports")]
    ports: Vec<String>,
    #[serde(rename = "LocalLBIndex")]
    local_lb_index: u32,
    #[serde(rename = "Tasks")]
    tasks: Vec<TaskInspect>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct TaskInspect {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "EndpointIP")]
    endpoint_ip: String,
    #[serde(rename = "Info")]
    info: BTreeMap<&'static str, String>,
}

/// MAC address of what has `ip`, as text.
fn mac_of(ip: std::net::Ipv4Addr) -> String {
    overlay_common::Mac::of_ip(ip.into()).to_string()
}

/// Docker's name of a network's driver.
pub const fn driver_name(driver: Driver) -> &'static str {
    match driver {
        Driver::Overlay => "overlay",
        Driver::Bridge => "bridge",
    }
}

/// Docker's word for how far a network of this driver reaches.
pub const fn scope(driver: Driver) -> &'static str {
    match driver {
        Driver::Overlay => "swarm",
        Driver::Bridge => "local",
    }
}

/// A network as seen from node `here`: its containers there, and the nodes that share it.
/// `verbose` adds its services.
pub fn network(
    state: &ClusterState,
    network: &Network,
    here: &Id,
    verbose: bool,
) -> NetworkInspect {
    NetworkInspect {
        name: network.name.clone(),
        id: network.id.to_string(),
        created: network.created,
        scope: scope(network.driver),
        driver: driver_name(network.driver),
        enable_ipv6: network.ipv6.is_some(),
        ipam: Ipam { driver: "default", options: None, config: ipam_config(network) },
        internal: network.internal,
        attachable: network.attachable,
        ingress: network.ingress,
        config_from: ConfigFrom::default(),
        config_only: false,
        containers: containers(state, network, here),
        options: options(network),
        labels: network.labels.clone(),
        peers: (!network.is_local()).then(|| peers(state, network)),
        services: verbose.then(|| services(state, network)),
    }
}

/// The `host` or the `none` network: no state of the cluster, but listed as Docker does.
pub fn pseudo_network(state: &ClusterState, pseudo: PseudoNetwork) -> NetworkInspect {
    NetworkInspect {
        name: pseudo.name().to_owned(),
        id: pseudo.id(state).to_string(),
        created: state.cluster.as_ref().map_or(Timestamp::UNIX_EPOCH, |c| c.created),
        scope: "local",
        driver: pseudo.driver(),
        enable_ipv6: false,
        ipam: Ipam { driver: "default", options: None, config: vec![] },
        internal: false,
        attachable: false,
        ingress: false,
        config_from: ConfigFrom::default(),
        config_only: false,
        containers: BTreeMap::new(),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        peers: None,
        services: None,
    }
}

/// The networks that are modes of `overlay run` and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PseudoNetwork {
    /// The host's own namespace.
    Host,
    /// A namespace with a loopback interface only.
    None,
}

impl PseudoNetwork {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Host, Self::None];

    /// Name, as Docker has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::None => "none",
        }
    }

    /// Driver, as Docker has it.
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::None => "null",
        }
    }

    /// The same for the life of a cluster, and different between the two.
    pub fn id(self, state: &ClusterState) -> Id {
        use sha2::Digest as _;
        let cluster = state.cluster.as_ref().map_or("", |c| c.id.as_str());
        let digest = sha2::Sha256::digest(format!("{cluster}/{}", self.name()));
        Id::from_text(digest.iter().take(13).map(|b| format!("{b:02x}")).collect::<String>())
    }
}

/// One entry for each family.
fn ipam_config(network: &Network) -> Vec<IpamConfig> {
    let ipv4 = IpamConfig {
        subnet: network.subnet.to_string(),
        ip_range: network.ip_range.map(|range| range.to_string()),
        gateway: network.gateway.to_string(),
        auxiliary_addresses: network
            .aux_addresses
            .iter()
            .map(|(name, address)| (name.clone(), address.to_string()))
            .collect(),
    };
    let ipv6 = network.ipv6.as_ref().map(|ipv6| IpamConfig {
        subnet: ipv6.subnet.to_string(),
        ip_range: None,
        gateway: ipv6.gateway.to_string(),
        auxiliary_addresses: BTreeMap::new(),
    });
    std::iter::once(ipv4).chain(ipv6).collect()
}

fn options(network: &Network) -> BTreeMap<String, String> {
    let mut options = network.options.clone();
    if !network.is_local() {
        options.insert(OPTION_VNI.to_owned(), network.vni.to_string());
    }
    if let Some(mtu) = network.mtu {
        options.insert(OPTION_MTU.to_owned(), mtu.to_string());
    }
    if network.multicast == Multicast::Replicate {
        options.insert(OPTION_MULTICAST.to_owned(), "replicate".to_owned());
    }
    options
}

fn containers(
    state: &ClusterState,
    network: &Network,
    here: &Id,
) -> BTreeMap<String, ContainerInspect> {
    let prefix = network.subnet.prefix_len();
    let prefix6 = network.ipv6.as_ref().map_or(0, |ipv6| ipv6.subnet.prefix_len());
    let entry = |name: &str, id: &Id, ip, ip6: Option<Ipv6Addr>| ContainerInspect {
        name: name.to_owned(),
        endpoint_id: id.to_string(),
        mac_address: mac_of(ip),
        ipv4_address: format!("{ip}/{prefix}"),
        ipv6_address: ip6.map(|ip6| format!("{ip6}/{prefix6}")).unwrap_or_default(),
    };
    let mut containers: BTreeMap<_, _> = state
        .endpoints_of(&network.id)
        .filter(|endpoint| endpoint.node == *here)
        .map(|e| (e.container.to_string(), entry(&e.name, &e.id, e.ip, e.ip6)))
        .collect();
    if network.ingress
        && let Some(node) = state.nodes.get(here)
    {
        let sandbox = entry("ingress-endpoint", &node.id, node.ingress_ip, None);
        containers.insert("ingress-sbox".to_owned(), sandbox);
    }
    containers
}

fn peers(state: &ClusterState, network: &Network) -> Vec<PeerInspect> {
    let mut nodes: Vec<_> = state
        .nodes
        .values()
        .filter(|node| {
            network.ingress || state.endpoints_of(&network.id).any(|e| e.node == node.id)
        })
        .collect();
    nodes.sort_by_key(|node| node.data_path_addr);
    nodes
        .into_iter()
        .map(|node| PeerInspect { name: node.name.clone(), ip: node.data_path_addr.to_string() })
        .collect()
}

/// The services on a network by name. Services that only carry a container's `-p` are no
/// services to the user.
fn services(state: &ClusterState, network: &Network) -> BTreeMap<String, ServiceOnNetwork> {
    let on_network = |service: &Service| {
        let here = service.networks.iter().find(|n| n.network == network.id)?;
        // Published ports go to the backends on the first network.
        let first = service.networks.first().is_some_and(|n| n.network == network.id);
        Some(ServiceOnNetwork {
            vip: here.vip.map(|vip| vip.to_string()).unwrap_or_default(),
            vip6: here.vip6,
            ports: service.ports.iter().filter(|_| first).map(port_words).collect(),
            local_lb_index: here.number,
            tasks: tasks(state, state.backends_of(&service.id, &network.id)),
        })
    };
    state
        .services
        .values()
        .filter(|service| service.owner.is_none())
        .filter_map(|service| Some((service.name.clone(), on_network(service)?)))
        .collect()
}

/// A port in the words of `docker network inspect --verbose`.
fn port_words(port: &Port) -> String {
    format!("Target: {}, Publish: {}", port.target, port.published.unwrap_or(0))
}

fn tasks<'a>(
    state: &ClusterState,
    backends: impl Iterator<Item = &'a Endpoint>,
) -> Vec<TaskInspect> {
    let mut backends: Vec<_> = backends.collect();
    backends.sort_by_key(|endpoint| endpoint.number);
    let host_ip = |node: &Id| state.nodes.get(node).map(|n| n.data_path_addr.to_string());
    backends
        .into_iter()
        .map(|endpoint| TaskInspect {
            name: endpoint.name.clone(),
            endpoint_id: endpoint.id.to_string(),
            endpoint_ip: endpoint.ip.to_string(),
            info: BTreeMap::from([("Host IP", host_ip(&endpoint.node).unwrap_or_default())]),
        })
        .collect()
}

#[cfg(test)]
pub(in crate::cli) mod testing;
#[cfg(test)]
mod tests;
