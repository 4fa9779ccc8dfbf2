//! A cluster without a store for tests of plans, and the invariants of every state.

use std::{
    collections::{BTreeSet, HashSet},
    net::Ipv4Addr,
};

use jiff::Timestamp;

use super::{Plan, Planned, endpoint, init, ipam, network, node, service};
use crate::{
    api::{
        ApiError, ContainerRef, EndpointCreate, ErrorCode, Join, NetworkCreate, NodeRemove,
        Reference, ServiceCreate, ServiceUpdate,
    },
    model::{
        ClusterState, Endpoint, Id, Network, Node, NodeState, Port, PublishMode, Service,
        ServiceNetwork,
    },
    pki::{Authority, NodeKey},
};

/// A cluster on one host, h1, which other hosts can join.
pub(super) struct World {
    pub state: ClusterState,
    authority: Authority,
    csr_pem: String,
}

pub(super) fn init_request() -> init::InitCluster {
    init::InitCluster {
        name: "h1".to_owned(),
        data_path_addr: [172, 16, 1, 10].into(),
        api_addr: "172.16.1.10:2377".parse().expect("an address"),
        default_pool: "10.0.0.0/8".parse().expect("a subnet"),
        pool_prefix: 24,
        data_path_port: 4789,
        ingress_subnet: None,
        bridge_subnet: "172.17.0.0/16".parse().expect("a subnet"),
        node_timeout_ms: 5000,
    }
}

pub(super) fn refused<T>(result: Result<T, ApiError>, code: ErrorCode, words: &[&str]) {
    let Err(error) = result else { panic!("must be refused: {words:?}") };
    assert_eq!(error.code, code, "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

pub(super) fn ports(text: &str) -> Vec<Port> {
    text.split_whitespace().flat_map(|port| Port::parse(port).expect("a port")).collect()
}

pub(super) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl World {
    pub fn new() -> Self {
        Self::with(&init_request())
    }

    pub fn with(request: &init::InitCluster) -> Self {
        let mut state = ClusterState::default();
        let (plan, _) = init::init(&state, request, Timestamp::now()).expect("a cluster");
        apply(&mut state, plan);
        let authority = Authority::new(&Id::random()).expect("an authority");
        let csr_pem = NodeKey::generate().expect("a key").csr_pem;
        let world = Self { state, authority, csr_pem };
        world.check();
        world
    }

    /// Applies a plan if planning succeeded, and then checks the state.
    pub fn plan<T>(&mut self, planned: Planned<T>) -> Result<T, ApiError> {
        let (plan, answer) = planned?;
        apply(&mut self.state, plan);
        self.check();
        Ok(answer)
    }

    pub fn join(&mut self, name: &str, address: &str) -> Result<Node, ApiError> {
        let request = Join {
            secret: String::new(),
            name: name.to_owned(),
            data_path_addr: address.parse().expect("an address"),
            csr_pem: self.csr_pem.clone(),
        };
        let planned = node::join(&self.state, &request, &self.authority, Timestamp::now());
        self.plan(planned).map(|joined| joined.node)
    }

    pub fn mark(&mut self, name: &str, state: NodeState) {
        let id = self.node(name);
        let planned = node::mark(&self.state, &[id], state, Timestamp::now());
        self.plan(planned).expect("marked");
    }

    pub fn remove_node(&mut self, name: &str, force: bool) -> Result<Node, ApiError> {
        let request = NodeRemove { reference: name.to_owned(), force };
        let planned = node::remove(&self.state, &request, false, Timestamp::now());
        self.plan(planned)
    }

    pub fn node(&self, name: &str) -> Id {
        self.state.node(name).expect("a node").id.clone()
    }

    pub fn network(&mut self, request: NetworkCreate) -> Result<Network, ApiError> {
        let planned = network::create(&self.state, &request, Timestamp::now());
        self.plan(planned)
    }

    pub fn named_network(&mut self, name: &str) -> Network {
        self.network(NetworkCreate {
            name: name.to_owned(),
            attachable: true,
            ..Default::default()
        })
        .expect("a network")
    }

    pub fn subnet(&mut self, name: &str, subnet: &str) -> Result<Network, ApiError> {
        self.network(NetworkCreate {
            name: name.to_owned(),
            subnet: Some(subnet.parse().expect("a subnet")),
            attachable: true,
            ..Default::default()
        })
    }

    pub fn remove_network(&mut self, name: &str) -> Result<Network, ApiError> {
        let planned = network::remove(&self.state, &reference(name), Timestamp::now());
        self.plan(planned)
    }

    pub fn service(&mut self, request: ServiceCreate) -> Result<Service, ApiError> {
        let planned = service::create(&self.state, &request, Timestamp::now());
        self.plan(planned)
    }

    pub fn published(&mut self, name: &str, on: &[&str], list: &str) -> Result<Service, ApiError> {
        self.service(ServiceCreate {
            name: name.to_owned(),
            networks: names(on),
            ports: ports(list),
            ..Default::default()
        })
    }

    pub fn update_service(&mut self, request: ServiceUpdate) -> Result<Service, ApiError> {
        let planned = service::update(&self.state, &request, Timestamp::now());
        self.plan(planned)
    }

    pub fn remove_service(&mut self, name: &str) -> Result<Service, ApiError> {
        let planned = service::remove(&self.state, &reference(name), Timestamp::now());
        self.plan(planned)
    }

    pub fn endpoint(&mut self, request: &EndpointCreate) -> Result<Vec<Endpoint>, ApiError> {
        let planned = endpoint::create(&self.state, request, Timestamp::now());
        self.plan(planned)
    }

    pub fn container(&self, node: &str, name: &str, on: &[&str]) -> EndpointCreate {
        EndpointCreate {
            node: self.node(node),
            container: Id::random(),
            name: name.to_owned(),
            networks: names(on),
            ..Default::default()
        }
    }

    pub fn attach(&mut self, node: &str, name: &str, on: &[&str]) -> Vec<Endpoint> {
        let request = self.container(node, name, on);
        self.endpoint(&request).expect("endpoints")
    }

    pub fn backend(&mut self, node: &str, name: &str, service: &str) -> Vec<Endpoint> {
        let service = Some(service.to_owned());
        let request = EndpointCreate { service, ..self.container(node, name, &[]) };
        self.endpoint(&request).expect("endpoints")
    }

    pub fn detach(&mut self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, ApiError> {
        let request = ContainerRef { container: endpoint.container.clone() };
        let planned = endpoint::remove(&self.state, &endpoint.node, &request, Timestamp::now());
        self.plan(planned)
    }

    /// Checks the invariants of every state.
    pub fn check(&self) {
        self.check_unique();
        self.check_addresses();
        self.check_references();
        self.check_ports();
    }

    fn check_unique(&self) {
        let state = &self.state;
        unique("network name", state.networks.values().map(|n| &n.name));
        unique("node name", state.nodes.values().map(|n| &n.name));
        unique("service name", state.services.values().map(|s| &s.name));
        unique("VNI", state.networks.values().map(|n| n.vni));
        unique("VTEP", state.nodes.values().map(|n| n.data_path_addr));
        let numbers = state.services.values().flat_map(|s| s.networks.iter().map(|on| on.number));
        let numbers: Vec<u32> = numbers.chain(state.endpoints.values().map(|e| e.number)).collect();
        unique("number", numbers.iter());
        let next = state.cluster.as_ref().expect("a cluster").next_number;
        assert!(numbers.iter().all(|number| (1..next).contains(number)));
        assert!(state.networks.values().filter(|n| n.ingress).count() <= 1);
        let subnets: Vec<_> = state.networks.values().collect();
        for (i, a) in subnets.iter().enumerate() {
            for b in &subnets[i + 1..] {
                assert!(!ipam::overlap(a.subnet, b.subnet), "{} and {}", a.name, b.name);
            }
            let inside = state
                .nodes
                .values()
                .find(|n| ipnet::IpNet::V4(a.subnet).contains(&n.data_path_addr));
            assert_eq!(inside, None, "in network {}", a.name);
        }
    }

    fn check_addresses(&self) {
        let state = &self.state;
        for network in state.networks.values() {
            let shared = [network.gateway].into_iter();
            let shared = shared.chain(network.aux_addresses.values().copied());
            let vips = state.services.values().flat_map(|s| &s.networks);
            let vips = vips.filter(|on| on.network == network.id).filter_map(|on| on.vip);
            let nodes = state.nodes.values().filter(|_| network.ingress).map(|n| n.ingress_ip);
            let mut taken: Vec<(Option<&Id>, Ipv4Addr)> =
                shared.chain(vips).chain(nodes).map(|ip| (None, ip)).collect();
            for endpoint in state.endpoints_of(&network.id) {
                let node = network.is_local().then_some(&endpoint.node);
                assert!(!taken.contains(&(None, endpoint.ip)), "{} is taken", endpoint.ip);
                taken.push((node, endpoint.ip));
            }
            for (_, ip) in &taken {
                assert!(ipam::usable(network.subnet).contains(&ip.to_bits()), "{ip}");
            }
            unique("address", taken.into_iter());
        }
        for network in state.networks.values() {
            let gateway = network.ipv6.as_ref().map(|ipv6| ipv6.gateway);
            let mut endpoints = state.endpoints_of(&network.id);
            assert!(endpoints.all(|e| e.ip6.is_some() == network.ipv6.is_some()));
            let on_it = || state.services.values().flat_map(|s| &s.networks);
            let on_it = || on_it().filter(|on| on.network == network.id);
            let both = |on: &ServiceNetwork| on.vip.is_some() && network.ipv6.is_some();
            assert!(on_it().all(|on| on.vip6.is_some() == both(on)));
            let endpoints = state.endpoints_of(&network.id).filter_map(|e| e.ip6);
            let vips = on_it().filter_map(|on| on.vip6);
            let taken: Vec<_> = gateway.into_iter().chain(vips).chain(endpoints).collect();
            let subnet = network.ipv6.as_ref().map(|ipv6| ipv6.subnet);
            assert!(taken.iter().all(|ip| subnet.is_some_and(|subnet| subnet.contains(ip))));
            unique("IPv6 address", taken.into_iter());
        }
        if state.ingress().is_none() {
            assert!(state.nodes.values().all(|n| n.ingress_ip.is_unspecified()));
        }
    }

    fn check_references(&self) {
        let state = &self.state;
        for endpoint in state.endpoints.values() {
            let network = state.networks.get(&endpoint.network).expect("its network");
            assert!(state.nodes.contains_key(&endpoint.node));
            if let Some(service) = &endpoint.service {
                let service = state.services.get(service).expect("its service");
                assert!(service.networks.iter().any(|on| on.network == endpoint.network));
            }
            let namesakes = state.endpoints_of(&network.id).filter(|other| {
                other.name == endpoint.name && (!network.is_local() || other.node == endpoint.node)
            });
            assert_eq!(namesakes.count(), 1, "named {} on {}", endpoint.name, network.name);
        }
        for service in state.services.values() {
            assert!(!service.networks.is_empty());
            assert!(service.networks.iter().all(|on| state.networks.contains_key(&on.network)));
            if let Some(owner) = &service.owner {
                let owner = state.endpoints.get(owner).expect("its owner");
                assert_eq!(owner.service.as_ref(), Some(&service.id));
            }
        }
    }

    fn check_ports(&self) {
        let mut on_every_node = HashSet::new();
        let mut on_a_node = HashSet::new();
        for service in self.state.services.values() {
            let nodes: BTreeSet<&Id> = (self.state.endpoints.values())
                .filter(|e| e.service.as_ref() == Some(&service.id))
                .map(|e| &e.node)
                .collect();
            for port in &service.ports {
                let key = (port.published.expect("a published port"), port.protocol);
                match port.mode {
                    PublishMode::Ingress => assert!(on_every_node.insert(key), "{port} twice"),
                    PublishMode::Host => {
                        for node in &nodes {
                            assert!(on_a_node.insert((*node, key)), "{port} twice on a node");
                        }
                    }
                }
                let first = &self.state.networks[&service.networks[0].network];
                assert!(!first.internal, "{port} leads to an internal network");
            }
        }
        let clash = on_a_node.iter().find(|(_, key)| on_every_node.contains(key));
        assert_eq!(clash, None);
    }
}

fn reference(name: &str) -> Reference {
    Reference { reference: name.to_owned() }
}

fn apply(state: &mut ClusterState, plan: Plan) {
    for change in plan.changes {
        state.apply(change);
    }
    state.revision += 1;
}

fn unique<T: std::hash::Hash + Eq + std::fmt::Debug>(what: &str, all: impl Iterator<Item = T>) {
    let mut seen = HashSet::new();
    for item in all {
        assert!(!seen.contains(&item), "{what} {item:?} is there twice");
        seen.insert(item);
    }
}
