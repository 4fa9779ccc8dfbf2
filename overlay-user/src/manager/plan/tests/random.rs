//! Random sequences of operations. An accepted operation leaves a state that keeps all invariants
//! ([`World::check`] runs after each step), and a rejected operation changes nothing.

use proptest::{prelude::*, sample::Index};

use super::super::testing::{World, names, ports};
use crate::{
    api::{
        EndpointCreate, ErrorCode, NetworkCreate, NetworkCreateIpv6, ServiceCreate, ServiceUpdate,
    },
    model::{EndpointMode, NodeState},
};

#[derive(Clone, Debug)]
enum Step {
    Network { name: u8, subnet: Option<u8>, internal: bool, ipv6: Option<bool> },
    Ingress,
    RemoveNetwork(Index),
    Service { name: u8, networks: Vec<Index>, ports: usize, dnsrr: bool },
    Publish(Index, usize),
    Withdraw(Index),
    RemoveService(Index),
    Join { name: u8, address: u8 },
    Mark(Index, bool),
    RemoveNode(Index),
    Attach { node: Index, name: u8, networks: Vec<Index>, service: Option<Index>, ports: usize },
    FixedAddress { node: Index, network: Index, last: u8, ipv6: bool },
    Detach(Index),
}

const PORTS: [&str; 7] = [
    "",
    "80:80",
    "80:81/udp 81",
    "published=80,target=80,mode=host",
    "published=82,target=80,mode=host 82:82/udp",
    "80",
    "8000-8002:80-82",
];

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let list = || prop::collection::vec(any::<Index>(), 0..3);
    prop_oneof![
        2 => (0..6_u8, prop::option::of(0..4_u8), any::<bool>(), prop::option::of(any::<bool>()))
            .prop_map(|(name, subnet, internal, ipv6)| {
                Step::Network { name, subnet, internal, ipv6 }
            }),
        1 => Just(Step::Ingress),
        1 => index().prop_map(Step::RemoveNetwork),
        3 => (0..8_u8, list(), 0..PORTS.len(), any::<bool>())
            .prop_map(|(name, networks, ports, dnsrr)| Step::Service { name, networks, ports, dnsrr }),
        1 => (index(), 0..PORTS.len()).prop_map(|(s, p)| Step::Publish(s, p)),
        1 => index().prop_map(Step::Withdraw),
        1 => index().prop_map(Step::RemoveService),
        2 => (0..5_u8, 0..5_u8).prop_map(|(name, address)| Step::Join { name, address }),
        1 => (index(), any::<bool>()).prop_map(|(n, ready)| Step::Mark(n, ready)),
        1 => index().prop_map(Step::RemoveNode),
        8 => (index(), 0..20_u8, list(), prop::option::of(index()), 0..PORTS.len()).prop_map(
            |(node, name, networks, service, ports)| {
                Step::Attach { node, name, networks, service, ports }
            }
        ),
        2 => (index(), index(), any::<u8>(), any::<bool>()).prop_map(
            |(node, network, last, ipv6)| Step::FixedAddress { node, network, last, ipv6 }
        ),
        3 => index().prop_map(Step::Detach),
    ]
}

fn pick<T>(index: Index, all: impl Iterator<Item = T>) -> Option<T> {
    let mut all: Vec<T> = all.collect();
    if all.is_empty() { None } else { Some(all.swap_remove(index.index(all.len()))) }
}

fn network_name(world: &World, index: Index) -> Option<String> {
    pick(index, world.state.networks.values().map(|n| n.name.clone()))
}

fn node_name(world: &World, index: Index) -> Option<String> {
    pick(index, world.state.nodes.values().map(|n| n.name.clone()))
}

fn service_name(world: &World, index: Index) -> Option<String> {
    pick(index, world.state.services.values().map(|s| s.name.clone()))
}

/// Runs a step; `None` when there is nothing to run it on.
fn run(world: &mut World, step: Step) -> Option<Result<(), crate::api::ApiError>> {
    let named = |list: Vec<Index>, world: &World| {
        list.into_iter().filter_map(|i| network_name(world, i)).collect::<Vec<String>>()
    };
    Some(match step {
        Step::Network { name, subnet, internal, ipv6 } => {
            // Half of the networks get a small subnet, which is soon full and which only one of
            // them can have.
            let tiny = || "fd00:1::/126".parse().expect("a subnet");
            let subnet6 = |tight: bool| tight.then(tiny);
            let ipv6 = ipv6.map(|t| NetworkCreateIpv6 { subnet: subnet6(t), gateway: None });
            let subnet = subnet.map(|n| format!("10.0.{n}.0/29").parse().expect("a subnet"));
            let name = format!("n{name}");
            let attachable = true;
            let request =
                NetworkCreate { name, subnet, internal, ipv6, attachable, ..Default::default() };
            world.network(request).map(drop)
        }
        Step::Ingress => {
            let name = "front".to_owned();
            world.network(NetworkCreate { name, ingress: true, ..Default::default() }).map(drop)
        }
        Step::RemoveNetwork(index) => {
            let name = network_name(world, index)?;
            world.remove_network(&name).map(drop)
        }
        Step::Service { name, networks, ports: list, dnsrr } => {
            let networks = named(networks, world);
            let mode = if dnsrr { EndpointMode::Dnsrr } else { EndpointMode::Vip };
            let (name, ports) = (format!("s{name}"), ports(PORTS[list]));
            world
                .service(ServiceCreate { name, networks, ports, mode, ..Default::default() })
                .map(drop)
        }
        Step::Publish(index, list) => {
            let reference = service_name(world, index)?;
            let publish_add = ports(PORTS[list]);
            world
                .update_service(ServiceUpdate { reference, publish_add, ..Default::default() })
                .map(drop)
        }
        Step::Withdraw(index) => {
            let reference = service_name(world, index)?;
            let publish_remove = names(&["80"]).iter().flat_map(|p| ports(p)).collect();
            world
                .update_service(ServiceUpdate { reference, publish_remove, ..Default::default() })
                .map(drop)
        }
        Step::RemoveService(index) => {
            let name = service_name(world, index)?;
            world.remove_service(&name).map(drop)
        }
        Step::Join { name, address } => {
            world.join(&format!("h{name}"), &format!("172.16.1.{}", 10 + address)).map(drop)
        }
        Step::Mark(index, ready) => {
            let name = node_name(world, index)?;
            world.mark(&name, if ready { NodeState::Ready } else { NodeState::Down });
            Ok(())
        }
        Step::RemoveNode(index) => {
            let name = node_name(world, index)?;
            world.remove_node(&name, false).map(drop)
        }
        Step::Attach { node, name, networks, service, ports: list } => {
            let node = node_name(world, node)?;
            let request = EndpointCreate {
                networks: named(networks, world),
                service: service.and_then(|i| service_name(world, i)),
                ports: ports(PORTS[list]),
                ..world.container(&node, &format!("c{name}"), &[])
            };
            world.endpoint(&request).map(drop)
        }
        Step::FixedAddress { node, network, last, ipv6 } => {
            let (node, network) = (node_name(world, node)?, network_name(world, network)?);
            let on = world.state.network(&network)?;
            let [a, b, c, _] = on.subnet.addr().octets();
            // The addresses are few, so that requests also meet taken ones: the gateway, VIPs and
            // containers.
            let ip6 = on.ipv6.as_ref().filter(|_| ipv6);
            let ip6 = ip6.map(|on| (on.subnet.addr().to_bits() + u128::from(last % 8)).into());
            let request = EndpointCreate {
                ip: ip6.is_none().then(|| [a, b, c, last].into()),
                ip6,
                ..world.container(&node, &format!("f{last}"), &[&network])
            };
            world.endpoint(&request).map(drop)
        }
        Step::Detach(index) => {
            let endpoint = pick(index, world.state.endpoints.values().cloned())?;
            world.detach(&endpoint).map(drop)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_accepted_keeps_the_rules(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            let before = world.state.clone();
            if let Some(Err(error)) = run(&mut world, step.clone()) {
                prop_assert_eq!(&world.state, &before, "refused, and yet changed: {:?}", step);
                prop_assert_ne!(error.code, ErrorCode::Internal, "{:?}: {}", step, error);
            }
        }
    }
}
