//! Nodes.

use jiff::Timestamp;

use super::super::{
    node,
    testing::{World, ports, refused},
};
use crate::{
    api::{EndpointCreate, ErrorCode, NodeAddresses, NodeRemove, NodeUpdate},
    model::{Availability, Node, NodeState, Role},
};

fn world() -> World {
    let mut world = World::new();
    world.mark("h1", NodeState::Ready);
    world.join("h2", "172.16.1.11").expect("joined");
    world
}

#[test]
fn a_joining_node_is_an_agent_down_until_heard_of_with_an_ingress_address() {
    let mut world = world();
    let h3 = world.join("h3", "172.16.1.12").expect("joined");
    assert_eq!((h3.role, h3.state), (Role::Agent, NodeState::Down));
    assert_eq!((h3.ingress_ip.to_string().as_str(), h3.api_addr), ("10.255.0.4", None));
}

#[test]
fn names_and_addresses_of_nodes_are_unique() {
    let mut world = world();
    world.mark("h2", NodeState::Ready);
    refused(world.join("h2", "172.16.1.12"), ErrorCode::Conflict, &["h2", "node rm h2"]);
    refused(
        world.join("h3", "172.16.1.11"),
        ErrorCode::Conflict,
        &["172.16.1.11", "node h2", "--force"],
    );
    refused(world.join("h 3", "172.16.1.12"), ErrorCode::Invalid, &["node name"]);
    for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        refused(world.join("h3", address), ErrorCode::Invalid, &[address]);
    }
    refused(world.join("h3", "10.255.0.9"), ErrorCode::Conflict, &["network ingress"]);
}

#[test]
fn data_path_addresses_are_of_one_family() {
    let mut world = world();
    let words = ["fd00::12", "IPv6", "IPv4", "--data-path-addr"];
    refused(world.join("h3", "fd00::12"), ErrorCode::Conflict, &words);
    let mut world = World::new();
    for node in world.state.nodes.values_mut() {
        node.data_path_addr = "fd00::10".parse().expect("an address");
    }
    refused(world.join("h2", "172.16.1.11"), ErrorCode::Conflict, &["is IPv4", "have IPv6 ones"]);
    for address in ["::", "::1", "ff02::1", "fe80::1", "::ffff:172.16.1.11"] {
        refused(world.join("h2", address), ErrorCode::Invalid, &[address]);
    }
    let h2 = world.join("h2", "fd00::11").expect("joined");
    assert_ne!(h2.vtep(), overlay_common::Be32::ZERO);
}

/// The maps hold 32 bits of an IPv6 address, so only one of two nodes that share them may join.
#[test]
fn a_node_whose_number_is_anothers_is_refused() {
    let mut world = World::new();
    // The addresses differ in two words. Addresses that differ in one word never share a number.
    let numbered = |n: u128| {
        let last = n.wrapping_mul(0x9e37_79b1) & 0xffff_ffff;
        std::net::IpAddr::V6((0xfd00_u128 << 112 | n << 32 | last).into())
    };
    let mut seen = std::collections::HashMap::new();
    let (a, b) = (1..10_000_000)
        .find_map(|n| seen.insert(crate::model::vtep(numbered(n)), n).map(|first| (first, n)))
        .expect("two with one number");
    for node in world.state.nodes.values_mut() {
        node.data_path_addr = numbered(a);
    }
    let other = numbered(b).to_string();
    refused(world.join("h2", &other), ErrorCode::Conflict, &["same number", "h1"]);
}

#[test]
fn a_host_set_up_anew_takes_the_place_of_its_silent_predecessor() {
    let mut world = world();
    world.named_network("a");
    let old = world.node("h2");
    let alone = EndpointCreate { ports: ports("80:80"), ..world.container("h2", "c1", &["a"]) };
    world.endpoint(&alone).expect("made");
    let new = world.join("h2", "172.16.1.11").expect("the same host");
    assert!(!world.state.nodes.contains_key(&old) && new.id != old);
    assert!(world.state.endpoints.is_empty() && world.state.services.is_empty());
    let renamed = world.join("other", "172.16.1.11").expect("the same address, another name");
    assert_eq!(world.state.nodes.len(), 2);
    assert_eq!(world.state.node("other").expect("there").id, renamed.id);
    world.mark("h1", NodeState::Down);
    refused(world.join("h1", "172.16.1.10"), ErrorCode::Conflict, &["node h1"]);
}

#[test]
fn a_full_ingress_network_takes_no_further_node() {
    let init = super::super::init::InitCluster {
        ingress_subnet: Some("10.77.0.0/30".parse().expect("a subnet")),
        ..super::super::testing::init_request()
    };
    let mut world = World::with(&init);
    refused(world.join("h2", "172.16.1.11"), ErrorCode::Exhausted, &["ingress", "1 by nodes"]);
    assert_eq!(world.state.nodes.len(), 1);
}

#[test]
fn draining_a_node_is_noted_once() {
    let mut world = world();
    let request = NodeUpdate { reference: "h2".to_owned(), availability: Availability::Drain };
    let planned = node::update(&world.state, &request, Timestamp::now());
    assert_eq!(world.plan(planned).expect("updated").availability, Availability::Drain);
    let (plan, _) = node::update(&world.state, &request, Timestamp::now()).expect("answered");
    assert!(plan.is_empty());
    let nobody = NodeUpdate { reference: "h9".to_owned(), ..request };
    let result = node::update(&world.state, &nobody, Timestamp::now());
    refused(result, ErrorCode::NotFound, &["h9", "node ls"]);
}

#[test]
fn a_nodes_ipv6_addresses_are_kept_in_order_and_written_when_they_change() {
    let mut world = world();
    let ip = |text: &str| text.parse().expect("an address");
    let says = |world: &World, texts: &[&str]| {
        let addresses6 = texts.iter().copied().map(ip).collect();
        let request = NodeAddresses { node: world.node("h2"), addresses6 };
        node::addresses(&world.state, &request, Timestamp::now())
    };
    let planned = says(&world, &["fd00::2", "2001:db8::2", "fd00::2"]);
    let h2 = world.plan(planned).expect("noted");
    assert_eq!(h2.addresses6, [ip("2001:db8::2"), ip("fd00::2")]);
    assert_eq!(world.state.nodes[&h2.id], h2);
    let (plan, _) = says(&world, &["2001:db8::2", "fd00::2"]).expect("answered");
    assert!(plan.is_empty(), "they are the same");
    let planned = says(&world, &[]);
    assert!(world.plan(planned).expect("noted").addresses6.is_empty());

    for address in ["::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.1"] {
        refused(says(&world, &["fd00::2", address]), ErrorCode::Invalid, &[address, "h2"]);
    }
    let many: Vec<String> = (0..65).map(|n| format!("fd00::{n:x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(says(&world, &many), ErrorCode::Invalid, &["65", "64", "h2"]);
    let planned = says(&world, &many[1..]);
    assert_eq!(world.plan(planned).expect("noted").addresses6.len(), 64);
}

#[test]
fn nodes_of_before_there_were_addresses_are_read() {
    let node = world().state.node("h2").expect("there").clone();
    let mut json = serde_json::to_value(&node).expect("JSON");
    assert_eq!(json.get("addresses6"), None, "none are not written");
    assert_eq!(serde_json::from_value::<Node>(json.clone()).expect("a node"), node);
    json["addresses6"] = serde_json::json!(["fd00::2"]);
    let node: Node = serde_json::from_value(json).expect("a node");
    assert_eq!(node.addresses6.len(), 1);
}

#[test]
fn a_removed_node_takes_its_endpoints_and_their_ports_with_it() {
    let mut world = world();
    world.named_network("a");
    world.attach("h1", "stays", &["a"]);
    let alone = EndpointCreate { ports: ports("80:80"), ..world.container("h2", "c1", &["a"]) };
    world.endpoint(&alone).expect("made");
    world.mark("h2", NodeState::Ready);
    refused(world.remove_node("h2", false), ErrorCode::Conflict, &["ready", "overlay leave"]);
    world.remove_node("h2", true).expect("removed");
    assert_eq!(world.state.endpoints.len(), 1);
    assert!(world.state.services.is_empty());
    world.published("web", &["a"], "80:80").expect("the port is free again");
}

#[test]
fn a_node_may_leave_although_ready_but_the_last_manager_only_by_force() {
    let mut world = world();
    world.mark("h2", NodeState::Ready);
    let by_itself = |world: &mut World, name: &str, force| {
        let request = NodeRemove { reference: name.to_owned(), force };
        let planned = node::remove(&world.state, &request, true, Timestamp::now());
        world.plan(planned)
    };
    by_itself(&mut world, "h2", false).expect("left");
    refused(by_itself(&mut world, "h1", false), ErrorCode::Conflict, &["last manager", "--force"]);
    by_itself(&mut world, "h1", true).expect("left");
}

#[test]
fn marking_skips_nodes_that_are_gone_or_marked_already() {
    let world = world();
    let ids = [world.node("h1"), world.node("h2"), crate::model::Id::random()];
    let (plan, ()) =
        node::mark(&world.state, &ids, NodeState::Ready, Timestamp::now()).expect("planned");
    assert_eq!(plan.changes.len(), 1, "h1 is ready already: {:?}", plan.changes);
}
