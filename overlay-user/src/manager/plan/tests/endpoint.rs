//! Endpoints.

use jiff::Timestamp;

use super::super::{
    endpoint,
    testing::{World, names, ports, refused},
};
use crate::{
    api::{ContainerRef, EndpointCreate, EndpointUpdate, ErrorCode, NetworkCreate},
    model::{EndpointState, Id},
};

fn world() -> World {
    let mut world = World::new();
    world.join("h2", "172.16.1.11").expect("joined");
    world.named_network("a");
    world.named_network("b");
    world
}

#[test]
fn a_container_gets_one_endpoint_per_network_in_their_order() {
    let mut world = world();
    let endpoints = world.attach("h1", "c1", &["b", "a", "bridge"]);
    let networks: Vec<&str> =
        endpoints.iter().map(|e| world.state.networks[&e.network].name.as_str()).collect();
    assert_eq!(networks, ["b", "a", "bridge"]);
    assert!(endpoints.iter().all(|e| e.state == EndpointState::Starting));
    assert!(endpoints.iter().all(|e| e.container == endpoints[0].container));
}

#[test]
fn the_same_container_again_changes_nothing_and_another_one_with_its_id_is_refused() {
    let mut world = world();
    let request = world.container("h1", "c1", &["b", "a"]);
    let made = world.endpoint(&request).expect("made");
    let (plan, again) =
        endpoint::create(&world.state, &request, Timestamp::now()).expect("answered");
    assert!(plan.is_empty());
    assert_eq!(again, made);
    for other in [
        EndpointCreate { name: "c2".to_owned(), ..request.clone() },
        EndpointCreate { networks: names(&["a"]), ..request.clone() },
        EndpointCreate { networks: names(&["a", "bridge"]), ..request.clone() },
        EndpointCreate { node: world.node("h2"), ..request.clone() },
    ] {
        refused(world.endpoint(&other), ErrorCode::Conflict, &["exists already"]);
    }
}

#[test]
fn names_are_unique_on_a_network_and_on_the_bridge_of_a_node() {
    let mut world = world();
    world.attach("h1", "c1", &["a"]);
    let same = world.container("h2", "c1", &["b", "a"]);
    refused(world.endpoint(&same), ErrorCode::Conflict, &["c1", "network a", "node h1"]);
    world.attach("h2", "c1", &["b"]);
    world.attach("h1", "c1", &["bridge"]);
    world.attach("h2", "c1", &["bridge"]);
    let same = world.container("h2", "c1", &["bridge"]);
    refused(world.endpoint(&same), ErrorCode::Conflict, &["c1", "bridge", "node h2"]);
}

#[test]
fn malformed_requests_are_refused() {
    let mut world = world();
    let good = world.container("h1", "c1", &["a"]);
    let cases = [
        (EndpointCreate { name: "c 1".to_owned(), ..good.clone() }, "container name"),
        (EndpointCreate { aliases: names(&["x y"]), ..good.clone() }, "alias name"),
        (EndpointCreate { container: Id::from_text("../x"), ..good.clone() }, "container id"),
        (EndpointCreate { networks: vec![], ..good.clone() }, "--network"),
        (EndpointCreate { networks: names(&["a", "a"]), ..good.clone() }, "twice"),
    ];
    for (request, why) in cases {
        refused(world.endpoint(&request), ErrorCode::Invalid, &[why]);
    }
    let nowhere = EndpointCreate { networks: names(&["nonet"]), ..good.clone() };
    refused(world.endpoint(&nowhere), ErrorCode::NotFound, &["nonet"]);
    let nothing = EndpointCreate { service: Some("nothing".to_owned()), ..good };
    refused(world.endpoint(&nothing), ErrorCode::NotFound, &["nothing"]);
}

#[test]
fn networks_for_services_alone_take_no_other_container() {
    let mut world = world();
    world.network(NetworkCreate { name: "closed".to_owned(), ..Default::default() }).expect("made");
    for (network, why) in [("closed", "not attachable"), ("ingress", "through a service")] {
        let request = world.container("h1", "c1", &[network]);
        refused(world.endpoint(&request), ErrorCode::Invalid, &[network, why, "--service"]);
        world.published(&format!("on-{network}"), &[network], "").expect("made");
        world.backend("h1", &format!("{network}.1"), &format!("on-{network}"));
    }
}

#[test]
fn a_backend_joins_networks_of_its_service_only() {
    let mut world = world();
    world.published("web", &["a", "b"], "80:80").expect("made");
    let all = world.backend("h1", "web.1", "web");
    let service = world.state.service("web").expect("web").id.clone();
    assert!(all.len() == 2 && all.iter().all(|e| e.service.as_ref() == Some(&service)));
    let on = |world: &World, on: &[&str]| EndpointCreate {
        service: Some("web".to_owned()),
        ..world.container("h2", "web.2", on)
    };
    let elsewhere = on(&world, &["bridge"]);
    refused(world.endpoint(&elsewhere), ErrorCode::Invalid, &["web", "bridge", "it is on a, b"]);
    let with_ports = EndpointCreate { ports: ports("81:80"), ..on(&world, &[]) };
    refused(world.endpoint(&with_ports), ErrorCode::Invalid, &["--publish-add"]);
    let one = on(&world, &["b"]);
    assert_eq!(world.endpoint(&one).expect("made").len(), 1);
}

#[test]
fn nobody_joins_the_service_of_a_single_container() {
    let mut world = world();
    let alone = EndpointCreate { ports: ports("80:80"), ..world.container("h1", "alone", &["a"]) };
    world.endpoint(&alone).expect("made");
    let intruder = EndpointCreate {
        service: Some("alone".to_owned()),
        ..world.container("h1", "intruder", &[])
    };
    refused(world.endpoint(&intruder), ErrorCode::Invalid, &["alone", "no other can join"]);
}

#[test]
fn a_published_container_with_a_services_name_gets_another_one_for_its_ports() {
    let mut world = world();
    world.published("web", &["a"], "").expect("made");
    let request = EndpointCreate { ports: ports("80:80"), ..world.container("h1", "web", &["b"]) };
    let endpoint = world.endpoint(&request).expect("made").remove(0);
    let owned = &world.state.services[endpoint.service.as_ref().expect("a service")];
    assert_eq!(owned.name, format!("web.{}", request.container.short()));
}

#[test]
fn a_state_is_set_on_all_endpoints_and_only_changes_are_answered() {
    let mut world = world();
    let made = world.attach("h1", "c1", &["a", "b"]);
    let request =
        EndpointUpdate { container: made[0].container.clone(), state: EndpointState::Running };
    let node = world.node("h1");
    let planned = endpoint::update(&world.state, &node, &request, Timestamp::now());
    assert_eq!(world.plan(planned).expect("updated").len(), 2);
    assert!(world.state.endpoints.values().all(|e| e.state == EndpointState::Running));
    let (plan, changed) =
        endpoint::update(&world.state, &node, &request, Timestamp::now()).expect("answered");
    assert!(plan.is_empty() && changed.is_empty());
    let nobody = EndpointUpdate { container: Id::random(), ..request };
    let result = endpoint::update(&world.state, &node, &nobody, Timestamp::now());
    refused(result, ErrorCode::NotFound, &["no container"]);
}

#[test]
fn a_node_touches_only_its_own_containers() {
    let mut world = world();
    let container = world.attach("h1", "c1", &["a"])[0].container.clone();
    let other = world.node("h2");
    let update = EndpointUpdate { container: container.clone(), state: EndpointState::Running };
    let result = endpoint::update(&world.state, &other, &update, Timestamp::now());
    refused(result, ErrorCode::Forbidden, &["another node"]);
    let request = ContainerRef { container };
    let result = endpoint::remove(&world.state, &other, &request, Timestamp::now());
    refused(result, ErrorCode::Forbidden, &["another node"]);
}

#[test]
fn removing_takes_all_endpoints_and_removing_again_is_no_error() {
    let mut world = world();
    let made = world.attach("h1", "c1", &["a", "b"]);
    assert_eq!(world.detach(&made[0]).expect("removed").len(), 2);
    assert!(world.state.endpoints.is_empty());
    assert!(world.detach(&made[0]).expect("nothing left").is_empty());
}
