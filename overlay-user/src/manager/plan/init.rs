//! A new cluster: the cluster object, its first node, its first two networks and its authority.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use overlay_common::{BRIDGE_VNI, INGRESS_VNI};

use super::{Plan, Planned, ipam, network, node};
use crate::{
    api::{ApiError, NetworkCreate},
    manager::error::{conflict, internal, invalid},
    model::{
        Availability, Change, Cluster, ClusterState, Driver, Id, Multicast, Network, Node,
        NodeState, Object, Role, check_name,
    },
    pki::{Authority, CertificateFor, NodeKey, NodePki},
    store::SecretChange,
};

/// Key of the authority's secret.
pub(in crate::manager) const CA_KEY: &str = "ca";

/// Allowed UDP ports for VXLAN, as in Docker.
const DATA_PATH_PORTS: RangeInclusive<u16> = 1024..=49_151;
/// Shortest node timeout, in milliseconds.
const MIN_NODE_TIMEOUT_MS: u64 = 100;

/// Settings of a new cluster.
#[derive(Clone, Debug)]
pub struct InitCluster {
    /// Name of the first node.
    pub name: String,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
    /// Address of its manager for other nodes.
    pub api_addr: SocketAddr,
    /// Pool that networks without a given subnet take theirs from.
    pub default_pool: Ipv4Net,
    /// Prefix length of such subnets.
    pub pool_prefix: u8,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// Subnet of the ingress network; `None`: 10.255.0.0/16 if the pool is 10.0.0.0/8, else the
    /// first subnet of the pool.
    pub ingress_subnet: Option<Ipv4Net>,
    /// Subnet of the bridge network.
    pub bridge_subnet: Ipv4Net,
    /// Silence after which a node is down, in milliseconds.
    pub node_timeout_ms: u64,
}

/// A new cluster.
#[derive(Clone, Debug)]
pub struct Initialized {
    /// Its first node.
    pub node: Node,
    /// The cluster.
    pub cluster: Cluster,
    /// Key and certificates of the node.
    pub pki: NodePki,
}

/// Makes the cluster in an empty state.
pub(in crate::manager) fn init(
    state: &ClusterState,
    request: &InitCluster,
    now: Timestamp,
) -> Planned<Initialized> {
    if state.cluster.is_some() || state.revision != 0 {
        return Err(conflict("the store holds a cluster already")
            .hint("run `overlay leave --force` first to give it up"));
    }
    check(request)?;
    let cluster = Cluster {
        id: Id::random(),
        created: now,
        default_pool: request.default_pool,
        pool_prefix: request.pool_prefix,
        data_path_port: request.data_path_port,
        next_vni: INGRESS_VNI + 1,
        next_number: 1,
        node_timeout_ms: request.node_timeout_ms,
    };
    let mut node = Node {
        id: Id::random(),
        name: request.name.clone(),
        role: Role::Manager,
        created: now,
        data_path_addr: request.data_path_addr,
        api_addr: Some(request.api_addr),
        ingress_ip: Ipv4Addr::UNSPECIFIED,
        state: NodeState::Down,
        availability: Availability::Active,
        addresses6: Vec::new(),
    };
    // This state grows step by step, because the rules for networks read it.
    let mut building = ClusterState { cluster: Some(cluster.clone()), ..Default::default() };
    building.nodes.insert(node.id.clone(), node.clone());
    let bridge = bridge(&building, request.bridge_subnet, now)?;
    building.networks.insert(bridge.id.clone(), bridge.clone());
    let subnet = Some(ingress_subnet(&building, request)?);
    let ingress =
        NetworkCreate { name: "ingress".to_owned(), subnet, ingress: true, ..Default::default() };
    let (plan, _) = network::create(&building, &ingress, now)?;
    for change in plan.changes {
        building.apply(change);
    }
    if let Some(with_address) = building.nodes.get(&node.id) {
        node = with_address.clone();
    }

    let authority = Authority::new(&cluster.id)?;
    let pki = pki(&authority, &node, request)?;
    let ca = serde_json::to_vec(&authority).map_err(internal)?;
    let changes = std::iter::once(Object::Cluster(cluster.clone()))
        .chain(building.networks.into_values().map(Object::Network))
        .chain([Object::Node(node.clone())])
        .map(Change::Put)
        .collect();
    let secrets = vec![SecretChange::Put(CA_KEY.to_owned(), ca)];
    Ok((Plan { changes, secrets }, Initialized { node, cluster, pki }))
}

fn check(request: &InitCluster) -> Result<(), ApiError> {
    check_name("node", &request.name)?;
    node::check_data_path_addr(request.data_path_addr)?;
    if request.api_addr.ip().is_unspecified() || request.api_addr.port() == 0 {
        return Err(invalid(format!("other nodes cannot reach a manager at {}", request.api_addr))
            .hint("give an address of this host with --advertise-addr"));
    }
    ipam::check_subnet("default address pool", request.default_pool)?;
    let prefixes = request.default_pool.prefix_len()..=ipam::LONGEST_PREFIX;
    if !prefixes.contains(&request.pool_prefix) {
        return Err(invalid(format!(
            "default address pool {} cannot be cut into /{}: possible are /{} to /{}",
            request.default_pool,
            request.pool_prefix,
            prefixes.start(),
            prefixes.end()
        )));
    }
    if !DATA_PATH_PORTS.contains(&request.data_path_port) {
        return Err(invalid(format!(
            "data-path port {} is out of range: {} to {}",
            request.data_path_port,
            DATA_PATH_PORTS.start(),
            DATA_PATH_PORTS.end()
        )));
    }
    if request.node_timeout_ms < MIN_NODE_TIMEOUT_MS {
        return Err(invalid(format!(
            "node timeout {} ms is too short: at least {MIN_NODE_TIMEOUT_MS} ms",
            request.node_timeout_ms
        )));
    }
    Ok(())
}

fn bridge(state: &ClusterState, subnet: Ipv4Net, now: Timestamp) -> Result<Network, ApiError> {
    let hint = "choose another one with --bridge-subnet";
    ipam::check_subnet("bridge subnet", subnet).map_err(|e| e.hint(hint))?;
    ipam::check_free(state, "bridge", subnet).map_err(|e| e.hint(hint))?;
    let network = Network {
        id: Id::random(),
        name: "bridge".to_owned(),
        created: now,
        driver: Driver::Bridge,
        vni: BRIDGE_VNI,
        subnet,
        ip_range: None,
        gateway: Ipv4Addr::UNSPECIFIED,
        aux_addresses: BTreeMap::new(),
        mtu: None,
        multicast: Multicast::Drop,
        internal: false,
        attachable: true,
        ingress: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        next_address: Ipv4Addr::UNSPECIFIED,
        ipv6: None,
    };
    network::with_addresses(network, &NetworkCreate::default())
}

fn ingress_subnet(state: &ClusterState, request: &InitCluster) -> Result<Ipv4Net, ApiError> {
    if let Some(subnet) = request.ingress_subnet {
        let hint = "choose another one with --ingress-subnet";
        ipam::check_subnet("ingress subnet", subnet).map_err(|e| e.hint(hint))?;
        ipam::check_free(state, "ingress", subnet).map_err(|e| e.hint(hint))?;
        return Ok(subnet);
    }
    let docker_pool = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).map_err(internal)?;
    let docker_ingress = Ipv4Net::new(Ipv4Addr::new(10, 255, 0, 0), 16).map_err(internal)?;
    if request.default_pool == docker_pool
        && ipam::check_free(state, "ingress", docker_ingress).is_ok()
    {
        return Ok(docker_ingress);
    }
    ipam::free_subnet(state, request.default_pool, request.pool_prefix)
}

fn pki(authority: &Authority, node: &Node, request: &InitCluster) -> Result<NodePki, ApiError> {
    let key = NodeKey::generate()?;
    let mut addresses = vec![node.data_path_addr];
    if request.api_addr.ip() != node.data_path_addr {
        addresses.push(request.api_addr.ip());
    }
    let subject = CertificateFor { node: &node.id, role: node.role, addresses: &addresses };
    let cert_pem = authority.sign(&key.csr_pem, subject)?;
    Ok(NodePki { ca_pem: authority.certificate_pem.clone(), cert_pem, key_pem: key.key_pem })
}
