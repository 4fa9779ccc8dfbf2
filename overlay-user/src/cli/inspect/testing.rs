//! A small cluster with fixed ids for tests of what is printed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use jiff::Timestamp;

use crate::model::{
    Availability, Cluster, ClusterState, Driver, Endpoint, EndpointMode, EndpointState, Id,
    Multicast, Network, Node, NodeState, Port, Protocol, PublishMode, Role, Service,
    ServiceNetwork,
};

fn id(text: &str) -> Id {
    Id::from_text(text)
}

fn time() -> Timestamp {
    "2025-03-01T12:00:00.5Z".parse().expect("a timestamp")
}

fn net(text: &str) -> Ipv4Net {
    text.parse().expect("a subnet")
}

fn network(name: &str, vni: u32, subnet: &str) -> Network {
    let subnet = net(subnet);
    let gateway = subnet.hosts().next().expect("a first address");
    Network {
        id: id(&format!("net-{name}")),
        name: name.to_owned(),
        created: time(),
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
    }
}

fn node(number: u8) -> Node {
    let data_path_addr = IpAddr::from([172, 16, 1, 9 + number]);
    let manager = number == 1;
    Node {
        id: id(&format!("node{number}")),
        name: format!("h{number}"),
        role: if manager { Role::Manager } else { Role::Agent },
        created: time(),
        data_path_addr,
        api_addr: manager.then(|| (data_path_addr, 2377).into()),
        ingress_ip: Ipv4Addr::new(10, 255, 0, 1 + number),
        state: NodeState::Ready,
        availability: Availability::Active,
        addresses6: Vec::new(),
    }
}

fn endpoint(number: u32, name: &str, network: &str, node: &str, ip: &str) -> Endpoint {
    Endpoint {
        id: id(&format!("endpoint-{name}")),
        number,
        name: name.to_owned(),
        container: id(&format!("container-{name}")),
        network: id(&format!("net-{network}")),
        node: id(node),
        ip: ip.parse().expect("an address"),
        ip6: None,
        aliases: vec![],
        service: None,
        weight: 1,
        health: Default::default(),
        state: EndpointState::Running,
        created: time(),
    }
}

fn service(name: &str, number: u32, vip: Option<&str>, published: u16) -> Service {
    Service {
        id: id(&format!("service-{name}")),
        name: name.to_owned(),
        created: time(),
        mode: EndpointMode::Vip,
        networks: vec![ServiceNetwork {
            network: id("net-mynet"),
            vip: vip.map(|vip| vip.parse().expect("an address")),
            vip6: None,
            number,
        }],
        ports: vec![Port {
            published: Some(published),
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
        }],
        labels: BTreeMap::new(),
        balance: Default::default(),
        health: None,
        drain_ms: 5000,
        owner: None,
    }
}

/// Nodes h1 (manager), h2 and h3; networks ingress, bridge and mynet; service `hello` on mynet
/// with a backend on h1 and one on h2; `edge` on ingress on h1; `web` with a port of its own on h2.
pub(in crate::cli) fn three_nodes() -> ClusterState {
    let networks = [
        Network { ingress: true, ..network("ingress", 4096, "10.255.0.0/16") },
        Network { driver: Driver::Bridge, ..network("bridge", 1, "172.17.0.0/16") },
        network("mynet", 4097, "10.0.0.0/24"),
    ];
    let hello = service("hello", 7, Some("10.0.0.2"), 8080);
    let carrier =
        Service { owner: Some(id("endpoint-web")), ..service("web-ports", 9, None, 9090) };
    let backend = |number, name, node, ip, service: &Service| Endpoint {
        service: Some(service.id.clone()),
        ..endpoint(number, name, "mynet", node, ip)
    };
    let endpoints = [
        backend(11, "hello.1", "node1", "10.0.0.3", &hello),
        backend(12, "hello.2", "node2", "10.0.0.4", &hello),
        backend(13, "web", "node2", "10.0.0.5", &carrier),
        endpoint(14, "edge", "ingress", "node1", "10.255.0.5"),
    ];
    ClusterState {
        revision: 20,
        cluster: Some(Cluster {
            id: id("cluster"),
            created: time(),
            default_pool: net("10.0.0.0/8"),
            pool_prefix: 24,
            data_path_port: 4789,
            next_vni: 4098,
            next_number: 15,
            node_timeout_ms: 5000,
        }),
        networks: networks.into_iter().map(|n| (n.id.clone(), n)).collect(),
        nodes: (1..=3).map(node).map(|n| (n.id.clone(), n)).collect(),
        services: [hello, carrier].into_iter().map(|s| (s.id.clone(), s)).collect(),
        endpoints: endpoints.into_iter().map(|e| (e.id.clone(), e)).collect(),
    }
}
