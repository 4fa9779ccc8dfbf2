//! Small clusters for tests.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use jiff::Timestamp;

use super::compile::LocalFacts;
use crate::model::{
    Availability, Cluster, ClusterState, Driver, Endpoint, EndpointMode, EndpointState, Id,
    Multicast, Network, NetworkIpv6, Node, NodeState, Port, Protocol, PublishMode, Role, Service,
    ServiceNetwork,
};

/// A published port of mode ingress.
pub fn port(published: u16, target: u16) -> Port {
    Port { published: Some(published), target, protocol: Protocol::Tcp, mode: PublishMode::Ingress }
}

/// The id that [`TestCluster`] gives an object: its name.
pub fn id(name: &str) -> Id {
    Id::from_text(name)
}

/// A cluster in the making. Ids are names; addresses and numbers are handed out in series.
pub struct TestCluster {
    /// The state so far.
    pub state: ClusterState,
    next_number: u32,
}

impl TestCluster {
    /// A cluster of nodes `h1`, `h2`, … (172.16.1.10, .11, …) with `ingress` and `bridge`.
    pub fn with_nodes(count: u8) -> Self {
        let mut cluster = Self { state: ClusterState::default(), next_number: 1 };
        cluster.state.revision = 1;
        cluster.state.cluster = Some(Cluster {
            id: id("cluster"),
            created: Timestamp::UNIX_EPOCH,
            default_pool: "10.0.0.0/8".parse().expect("a subnet"),
            pool_prefix: 24,
            data_path_port: 4789,
            next_vni: 4100,
            next_number: 1,
            node_timeout_ms: 3000,
        });
        cluster.network("ingress", "10.255.0.0/16", |n| {
            n.ingress = true;
            n.vni = overlay_common::INGRESS_VNI;
        });
        cluster.network("bridge", "172.17.0.0/16", |n| {
            n.driver = Driver::Bridge;
            n.vni = overlay_common::BRIDGE_VNI;
        });
        for i in 0..count {
            cluster.node(i);
        }
        cluster
    }

    fn node(&mut self, i: u8) {
        let name = format!("h{}", i + 1);
        let node = Node {
            id: id(&name),
            name,
            role: if i == 0 { Role::Manager } else { Role::Agent },
            created: Timestamp::UNIX_EPOCH,
            data_path_addr: [172, 16, 1, 10 + i].into(),
            api_addr: None,
            ingress_ip: Ipv4Addr::new(10, 255, 0, 2 + i),
            state: NodeState::Ready,
            availability: Availability::Active,
            addresses6: Vec::new(),
        };
        self.state.nodes.insert(node.id.clone(), node);
    }

    /// Adds a network (its gateway is the first address of the subnet) and lets `change` amend it.
    pub fn network(&mut self, name: &str, subnet: &str, change: impl FnOnce(&mut Network)) {
        let subnet: Ipv4Net = subnet.parse().expect("a subnet");
        let gateway = Ipv4Addr::from(u32::from(subnet.network()) + 1);
        let vni = 4096 + u32::try_from(self.state.networks.len()).expect("few networks");
        let mut network = Network {
            id: id(name),
            name: name.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            driver: Driver::Overlay,
            vni,
            subnet,
            ip_range: None,
            gateway,
            aux_addresses: BTreeMap::new(),
            mtu: None,
            multicast: Multicast::Drop,
            internal: false,
            attachable: true,
            ingress: false,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            next_address: gateway,
            ipv6: None,
        };
        change(&mut network);
        self.state.networks.insert(network.id.clone(), network);
    }

    /// Adds a service with VIP .200 + its count on each network, and `ports`.
    pub fn service(&mut self, name: &str, networks: &[&str], ports: &[Port]) {
        let host = 200 + u32::try_from(self.state.services.len()).expect("few services");
        let on = |network: &&str| {
            let network = &self.state.networks[&id(network)];
            let vip = Ipv4Addr::from(u32::from(network.subnet.network()) + host);
            let ipv6 = network.ipv6.as_ref();
            let vip6 = ipv6.map(|ipv6| (ipv6.subnet.network().to_bits() + u128::from(host)).into());
            (network.id.clone(), vip, vip6)
        };
        let places: Vec<_> = networks.iter().map(on).collect();
        let networks = places
            .into_iter()
            .map(|(network, vip, vip6)| ServiceNetwork {
                network,
                vip: Some(vip),
                vip6,
                number: self.number(),
            })
            .collect();
        let service = Service {
            id: id(name),
            name: name.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            mode: EndpointMode::Vip,
            networks,
            ports: ports.to_vec(),
            labels: BTreeMap::new(),
            balance: Default::default(),
            health: None,
            drain_ms: 5000,
            owner: None,
        };
        self.state.services.insert(service.id.clone(), service);
    }

    /// Adds a running endpoint with the given last byte of the address and returns its number.
    pub fn endpoint(&mut self, name: &str, network: &str, node: &str, host: u8) -> u32 {
        let subnet = self.state.networks[&id(network)].subnet;
        let ipv6 = self.state.networks[&id(network)].ipv6.as_ref();
        let ip6 = ipv6.map(|ipv6| (ipv6.subnet.network().to_bits() + u128::from(host)).into());
        let number = self.number();
        let endpoint = Endpoint {
            id: id(name),
            number,
            name: name.to_owned(),
            container: id(name),
            network: id(network),
            node: id(node),
            ip: Ipv4Addr::from(u32::from(subnet.network()) + u32::from(host)),
            ip6,
            aliases: Vec::new(),
            service: None,
            weight: 1,
            state: EndpointState::Running,
            health: Default::default(),
            created: Timestamp::UNIX_EPOCH,
        };
        self.state.endpoints.insert(endpoint.id.clone(), endpoint);
        number
    }

    /// Adds a running backend and returns its number.
    pub fn backend(&mut self, name: &str, service: &str, node: &str, host: u8) -> u32 {
        let network = self.state.services[&id(service)].networks[0].network.clone();
        let number = self.endpoint(name, network.as_str(), node, host);
        self.endpoint_mut(name).service = Some(id(service));
        number
    }

    /// The endpoint, to be changed.
    pub fn endpoint_mut(&mut self, name: &str) -> &mut Endpoint {
        self.state.endpoints.get_mut(&id(name)).expect("an endpoint")
    }

    /// The node, to be changed.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.state.nodes.get_mut(&id(name)).expect("a node")
    }

    /// The service, to be changed.
    pub fn service_mut(&mut self, name: &str) -> &mut Service {
        self.state.services.get_mut(&id(name)).expect("a service")
    }

    /// Number of the service on its first network.
    pub fn number_of(&self, service: &str) -> u32 {
        self.state.services[&id(service)].networks[0].number
    }

    fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Facts of a node on which every endpoint of its own is wired: interface 1000 + number.
    pub fn facts(&self, node: &str) -> LocalFacts {
        let mine = self.state.endpoints.values().filter(|e| e.node == id(node));
        let node = &self.state.nodes[&id(node)];
        LocalFacts {
            links: mine.map(|e| (e.id.clone(), 1000 + e.number)).collect(),
            netns: BTreeMap::new(),
            host_link: Some((7, overlay_common::Mac::of_ip(node.ingress_ip.into()))),
            addresses: vec![ipv4_of(node)],
            addresses6: vec![],
            uplinks: [(2, ipv4_of(node))].into(),
            underlay_mtu: 1500,
        }
    }
}

/// The VTEP of a node with an IPv4 one.
pub fn ipv4_of(node: &Node) -> Ipv4Addr {
    match node.data_path_addr {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}

/// Gives a network IPv6: fd00:1::/64.
pub fn dual_stack(network: &mut Network) {
    network.ipv6 = Some(NetworkIpv6 {
        subnet: "fd00:1::/64".parse().expect("a subnet"),
        gateway: "fd00:1::1".parse().expect("an address"),
        next_address: "fd00:1::2".parse().expect("an address"),
    });
}
