//! Properties of compile and diff that hold for every cluster.

use std::collections::BTreeMap;

use overlay_common::{
    Be32, Ip6, Mac,
    maps::{
        BACKEND_ACTIVE, Backend, ENDPOINT_GATEWAY, ENDPOINT_SERVICE, EndpointKey,
        NETWORK_REPLICATE, PUBLISHED_IPV6, SlotKey, TableKey,
    },
};
use proptest::prelude::*;

use crate::{
    agent::{
        compile::{LocalFacts, compile},
        testing::{TestCluster, dual_stack, id, port},
    },
    datapath::{DatapathState, LbTable, MapOp, diff},
    model::{Availability, EndpointState, Multicast, NodeState, Port, PublishMode, Scheduler},
};

const NETWORKS: [&str; 4] = ["net0", "net1", "net2", "bridge"];
const SERVICES: [&str; 3] = ["svc0", "svc1", "svc2"];
const NODES: [&str; 3] = ["h1", "h2", "h3"];

/// One endpoint: network, node, service (if it is on that network), state, wired.
type EndpointSpec = (usize, usize, Option<usize>, u8, bool);
/// One service: networks by bits, ports (mode host when true).
type ServiceSpec = (u8, Vec<bool>);

#[derive(Clone, Debug)]
struct Spec {
    services: Vec<ServiceSpec>,
    endpoints: Vec<Option<EndpointSpec>>,
    down: [bool; 3],
    drained: [bool; 3],
}

fn spec() -> impl Strategy<Value = Spec> {
    let service = (1u8..16, prop::collection::vec(any::<bool>(), 0..3));
    let endpoint = prop::option::weighted(
        0.8,
        (
            0..NETWORKS.len(),
            0..NODES.len(),
            prop::option::of(0..SERVICES.len()),
            0u8..4,
            any::<bool>(),
        ),
    );
    let services = prop::collection::vec(service, SERVICES.len());
    let endpoints = prop::collection::vec(endpoint, 0..14);
    (services, endpoints, any::<[bool; 3]>(), any::<[bool; 3]>()).prop_map(
        |(services, endpoints, down, drained)| Spec { services, endpoints, down, drained },
    )
}

fn state_of(choice: u8) -> EndpointState {
    match choice {
        0 => EndpointState::Starting,
        1 => EndpointState::Draining,
        _ => EndpointState::Running,
    }
}

/// The cluster of a spec and the facts of `h1` in it. An endpoint's id, number and address depend
/// only on its place in the list, so that two clusters differ only where their specs differ.
fn build(spec: &Spec) -> (TestCluster, LocalFacts) {
    let mut cluster = TestCluster::with_nodes(3);
    for (i, name) in NETWORKS.iter().enumerate().take(3) {
        cluster.network(name, &format!("10.0.{i}.0/24"), |n| {
            n.internal = i == 2;
            n.multicast = if i == 1 { Multicast::Replicate } else { Multicast::Drop };
            if i == 0 {
                dual_stack(n);
            }
        });
    }
    for (s, (bits, ports)) in spec.services.iter().enumerate() {
        add_service(&mut cluster, s, *bits, ports);
    }
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        if let Some(endpoint) = endpoint {
            add_endpoint(&mut cluster, i, *endpoint);
        }
    }
    for (i, name) in NODES.iter().enumerate() {
        let node = cluster.node_mut(name);
        node.state = if spec.down[i] { NodeState::Down } else { NodeState::Ready };
        node.availability =
            if spec.drained[i] { Availability::Drain } else { Availability::Active };
    }
    let mut facts = cluster.facts("h1");
    facts.links.retain(|endpoint, _| {
        let index: usize = endpoint.as_str()[1..].parse().expect("an index");
        spec.endpoints[index].is_some_and(|(.., wired)| wired)
    });
    (cluster, facts)
}

fn add_service(cluster: &mut TestCluster, s: usize, bits: u8, ports: &[bool]) {
    let on: Vec<&str> = (0..4).filter(|n| bits & (1 << n) != 0).map(|n| NETWORKS[n]).collect();
    let ports: Vec<Port> = ports
        .iter()
        .enumerate()
        .map(|(p, host)| {
            let published = u16::try_from(8000 + 10 * s + p).expect("a port");
            let mode = if *host { PublishMode::Host } else { PublishMode::Ingress };
            Port { mode, ..port(published, 80) }
        })
        .collect();
    cluster.service(SERVICES[s], &on, &ports);
    let schedulers =
        [Scheduler::Rr, Scheduler::Wrr, Scheduler::Lc, Scheduler::Sh, Scheduler::Maglev];
    cluster.service_mut(SERVICES[s]).balance.scheduler =
        schedulers[(usize::from(bits) + s) % schedulers.len()];
    // A number stands for one service on one network.
    for on in &mut cluster.service_mut(SERVICES[s]).networks {
        let n = NETWORKS.iter().position(|name| on.network == id(name)).expect("a network");
        on.number = u32::try_from(100 + 10 * s + n).expect("small");
    }
}

fn add_endpoint(
    cluster: &mut TestCluster,
    i: usize,
    (network, node, service, state, _): EndpointSpec,
) {
    let name = format!("e{i}");
    let host = u8::try_from(10 + i).expect("few endpoints");
    cluster.endpoint(&name, NETWORKS[network], NODES[node], host);
    let service = service.filter(|s| {
        let networks = &cluster.state.services[&id(SERVICES[*s])].networks;
        networks.iter().any(|on| on.network == id(NETWORKS[network]))
    });
    let endpoint = cluster.endpoint_mut(&name);
    endpoint.number = 1000 + u32::from(host);
    endpoint.state = state_of(state);
    endpoint.weight = u16::from(host) % 3;
    endpoint.service = service.map(|s| id(SERVICES[s]));
}

/// Every reference has its target.
fn dangling(state: &DatapathState) -> Option<String> {
    for (number, service) in &state.services {
        if service.table != 0 {
            let table = state.tables.get(&TableKey { service: *number, table: service.table });
            if table.map(LbTable::size) != Some(service.slots) {
                return Some(format!("service {number} lacks its table"));
            }
            continue;
        }
        for index in 0..service.slots {
            let Some(backend) = state.slots.get(&SlotKey { service: *number, index }) else {
                return Some(format!("service {number} lacks slot {index}"));
            };
            if !state.backends.contains_key(backend) {
                return Some(format!("slot {index} of {number}: no backend {backend}"));
            }
        }
    }
    for (vni, network) in &state.networks {
        if network.flags & NETWORK_REPLICATE != 0 && !state.flood.contains_key(vni) {
            return Some(format!("network {vni}: nowhere to copy to"));
        }
    }
    for (key, published) in &state.published {
        if !state.services.contains_key(&published.service) {
            return Some(format!("{key:?}: no service {}", published.service));
        }
    }
    for (key, endpoint) in &state.endpoints {
        if !state.networks.contains_key(&key.vni) {
            return Some(format!("{key:?}: no such network"));
        }
        if endpoint.kind == ENDPOINT_SERVICE && !state.services.contains_key(&endpoint.service) {
            return Some(format!("{key:?}: no service {}", endpoint.service));
        }
    }
    for (key, endpoint) in &state.endpoints6 {
        let name = EndpointKey { vni: key.vni, ip: ip_of(endpoint.mac) };
        if endpoint.kind == ENDPOINT_SERVICE && !state.services.contains_key(&endpoint.service) {
            return Some(format!("{key:?}: no service {}", endpoint.service));
        }
        if endpoint.kind != ENDPOINT_GATEWAY && state.addresses6.get(&name) != Some(&key.ip) {
            return Some(format!("{key:?}: not the address of {name:?}"));
        }
    }
    let dual = |backend: &&Backend| {
        state.published.values().any(|published| {
            let service = state.services.get(&published.service);
            published.flags & PUBLISHED_IPV6 != 0 && service.is_some_and(|s| s.vni == backend.vni)
        })
    };
    for backend in state.backends.values().filter(dual) {
        let name = EndpointKey { vni: backend.vni, ip: backend.ip };
        if !state.addresses6.contains_key(&name) {
            return Some(format!("{name:?}: a backend without an IPv6 address"));
        }
    }
    let mut links = state.links.values();
    links.find(|l| !state.networks.contains_key(&l.vni)).map(|l| format!("{l:?}: no network"))
}

/// The IPv4 address that a MAC of ours is made of.
fn ip_of(mac: Mac) -> Be32 {
    let [_, _, a, b, c, d] = mac.bytes();
    Be32::from_octets([a, b, c, d])
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn apply(state: &mut DatapathState, op: &MapOp) {
    match op.clone() {
        MapOp::Network(k, v) => set(&mut state.networks, k, v),
        MapOp::Flood(k, v) => set(&mut state.flood, k, v),
        MapOp::Endpoint(k, v) => set(&mut state.endpoints, k, v),
        MapOp::Endpoint6(k, v) => set(&mut state.endpoints6, k, v),
        MapOp::Address6(k, v) => set(&mut state.addresses6, k, v),
        MapOp::Link(k, v) => set(&mut state.links, k, v),
        MapOp::Link6(k, v) => set(&mut state.links6, k, v),
        MapOp::Peer(k, v) => set(&mut state.peers, k, v),
        MapOp::Vtep6(k, v) => set(&mut state.vteps6, k, v),
        MapOp::Service(k, v) => set(&mut state.services, k, v),
        MapOp::Slot(k, v) => set(&mut state.slots, k, v),
        MapOp::Table(k, v) => set(&mut state.tables, k, v),
        MapOp::Backend(k, v) => set(&mut state.backends, k, v),
        MapOp::Published(k, v) => set(&mut state.published, k, v),
        MapOp::LocalAddr(k, v) => set(&mut state.local_addrs, k, v),
        MapOp::LocalAddr6(k, v) => set(&mut state.local_addrs6, k, v),
        MapOp::Egress(k, v) => set(&mut state.egress, k, v),
        MapOp::Subnet(k, v) => set(&mut state.subnets, k, v),
        MapOp::Subnet6(k, v) => set(&mut state.subnets6, k, v),
        MapOp::Frontend6(k, v) => set(&mut state.frontends6, k, v),
        MapOp::Netns(k, v) => set(&mut state.netns, k, v),
        MapOp::StaleBackend(k, v) => set(&mut state.stale_backends, k, v),
    }
}

proptest! {
    #[test]
    fn nothing_that_is_compiled_dangles(spec in spec()) {
        let (cluster, facts) = build(&spec);
        let state = compile(&cluster.state, &id("h1"), &facts);
        prop_assert_eq!(dangling(&state), None);
        for (key, slot) in &state.slots {
            prop_assert!(key.index < state.services[&key.service].slots);
            prop_assert_eq!(state.backends[slot].state, BACKEND_ACTIVE);
        }
    }

    #[test]
    fn only_networks_with_a_wired_endpoint_here_and_ingress_are_held(spec in spec()) {
        let (cluster, facts) = build(&spec);
        let state = compile(&cluster.state, &id("h1"), &facts);
        for key in state.endpoints.keys() {
            let network = cluster.state.networks.values().find(|n| n.vni == key.vni);
            let network = network.expect("a network of the cluster");
            let mut endpoints = cluster.state.endpoints_of(&network.id);
            let here = endpoints.any(|e| facts.links.contains_key(&e.id));
            prop_assert!(network.ingress || here, "{} has no endpoint here", network.name);
        }
    }

    #[test]
    fn the_operations_lead_from_one_state_to_the_other_without_a_gap(a in spec(), b in spec()) {
        let (old, old_facts) = build(&a);
        let (new, new_facts) = build(&b);
        let mut state = compile(&old.state, &id("h1"), &old_facts);
        let target = compile(&new.state, &id("h1"), &new_facts);
        for op in diff(&state, &target) {
            apply(&mut state, &op);
            prop_assert_eq!(dangling(&state), None, "after {:?}", op);
        }
        prop_assert_eq!(&state, &target);
        prop_assert_eq!(diff(&target, &target), vec![]);
    }

    #[test]
    fn changing_the_state_of_one_endpoint_touches_its_own_entries_only(
        spec in spec(), choice in any::<prop::sample::Index>(), new in 0u8..4,
    ) {
        let mut changed = spec.clone();
        let present: Vec<usize> =
            (0..spec.endpoints.len()).filter(|i| spec.endpoints[*i].is_some()).collect();
        prop_assume!(!present.is_empty());
        let index = present[choice.index(present.len())];
        if let Some(endpoint) = &mut changed.endpoints[index] {
            endpoint.3 = new;
        }
        let (cluster, facts) = build(&spec);
        let (after, _) = build(&changed);
        let endpoint = &cluster.state.endpoints[&id(&format!("e{index}"))];
        let network = &cluster.state.networks[&endpoint.network];
        let own_key = EndpointKey { vni: network.vni, ip: endpoint.ip.into() };
        let own_services: Vec<u32> = endpoint.service.iter()
            .flat_map(|s| &cluster.state.services[s].networks)
            .filter(|on| on.network == endpoint.network)
            .map(|on| on.number)
            .collect();
        let serves = |number: &u32| own_services.contains(&(number & !super::HOST_MODE));
        let ops = diff(
            &compile(&cluster.state, &id("h1"), &facts),
            &compile(&after.state, &id("h1"), &facts),
        );
        for op in ops {
            let own = match &op {
                MapOp::Endpoint(key, _) | MapOp::Address6(key, _) => *key == own_key,
                MapOp::Endpoint6(key, _) => Some(key.ip) == endpoint.ip6.map(Ip6::from),
                MapOp::Backend(number, _) => *number == endpoint.number,
                MapOp::Service(number, _) => serves(number),
                MapOp::Slot(key, _) => serves(&key.service),
                MapOp::Table(key, _) => serves(&key.service),
                // A port of mode host comes and goes with its only backend here.
                MapOp::Published(..) => !own_services.is_empty(),
                _ => false,
            };
            prop_assert!(own, "{op:?} is not of e{index}");
        }
    }
}
