//! Repairs after changes to a host from elsewhere.

use super::*;
use crate::agent::testing::ipv4_of;
use crate::{
    agent::testing::port,
    datapath::{DatapathCall, DatapathState},
    model::{EndpointState, Kind},
};

#[tokio::test]
async fn maps_that_another_program_emptied_are_filled_again() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let before = test.datapath.state();
    test.datapath.set_state(DatapathState::default());
    agent.repair().await.expect("repaired");
    assert_eq!(test.datapath.state(), before);
}

#[tokio::test]
async fn a_write_that_fails_is_repeated_until_the_maps_show_the_state() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    test.datapath.fail(DatapathCall::Apply, 0, 1);
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    eventually("the failure shows", || {
        agent.status().is_ok_and(|s| s.last_error.is_some())
            || !test.datapath.state().published.is_empty()
    })
    .await;
    eventually("the maps show the service", || {
        test.datapath.state().services.contains_key(&service.networks[0].number)
    })
    .await;
    eventually("the error is overcome", || agent.status().is_ok_and(|s| s.last_error.is_none()))
        .await;
}

#[tokio::test]
async fn a_link_that_another_program_removed_is_made_anew() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let name = endpoint_links(&test).1.remove(0);
    test.links.remove(&name).await.expect("removed");
    agent.repair().await.expect("repaired");
    let (attached, links) = endpoint_links(&test);
    assert_eq!((attached, links.clone()), (links, vec![name.clone()]));
    let index = test.links.list("ov").await.expect("listed");
    let index = index.iter().find(|(n, _)| *n == name).expect("the link").1;
    assert!(test.datapath.state().links.contains_key(&index));
}

#[tokio::test]
async fn new_addresses_of_the_host_answer_published_ports() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let facts = test.links.underlay("eth0").await.expect("facts");
    let second = Ipv4Addr::new(192, 0, 2, 7);
    test.links.add_underlay("eth0", facts, &[ipv4_of(&test.node), second]);
    agent.host.look_around().await.expect("looked");
    eventually("the address is in the maps", || {
        test.datapath.state().local_addrs.contains_key(&second.into())
    })
    .await;
    let third: std::net::Ipv6Addr = "2001:db8::7".parse().expect("an address");
    test.links.set_addresses6("eth0", &[third]);
    agent.host.look_around().await.expect("looked");
    let held = || test.datapath.state().local_addrs6;
    eventually("so is an IPv6 one", || held().contains_key(&third.into())).await;
    let told = || world.manager.state().nodes[&test.node.id].addresses6.clone();
    eventually("the manager is told of it", || told() == [third]).await;
    test.links.set_addresses6("eth0", &[]);
    agent.host.look_around().await.expect("looked");
    eventually("until it goes", || held().is_empty() && told().is_empty()).await;
    // A failed report is sent again.
    test.wire.fail("node_addresses");
    test.links.set_addresses6("eth0", &[third, "fe80::1".parse().expect("an address")]);
    agent.host.look_around().await.expect("looked");
    eventually("it is here", || held().contains_key(&third.into())).await;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert!(told().is_empty());
    test.wire.heal();
    eventually("the manager hears of it at last", || told() == [third]).await;
}

#[tokio::test]
async fn other_nodes_learn_a_hosts_ipv6_addresses_and_a_restarted_manager_knows_them() {
    let world = World::new();
    let test = TestHost::first(&world);
    let other = TestHost::new(&world, &world.add_node(11));
    let (_agent, _tasks) = test.start().await;
    let (agent, _other_tasks) = other.start().await;
    let address: std::net::Ipv6Addr = "2001:db8::7".parse().expect("an address");
    other.links.set_addresses6("eth0", &[address]);
    agent.host.look_around().await.expect("looked");
    let node = other.node.vtep();
    let number = overlay_common::hash::of_node(&address.into());
    let held = || test.datapath.state().frontends6;
    let key = overlay_common::maps::Frontend6Key { node, number };
    eventually("the first node knows it", || held().get(&key) == Some(&address.into())).await;
    assert!(other.datapath.state().frontends6.is_empty(), "it is its own");
    let manager = Manager::open(world.store.clone()).expect("the next manager");
    assert_eq!(manager.state().nodes[&other.node.id].addresses6, [address]);
}

#[tokio::test]
async fn another_mtu_of_the_underlay_reaches_the_configuration() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let facts = test.links.underlay("eth0").await.expect("facts");
    let facts = UnderlayFacts { mtu: 9000, ..facts };
    test.links.add_underlay("eth0", facts, &[ipv4_of(&test.node)]);
    agent.host.look_around().await.expect("looked");
    eventually("the MTU is configured", || test.datapath.config().underlay_mtu == 9000).await;
    eventually("the host link has it", || test.links.host_link().is_some_and(|l| l.mtu == 8950))
        .await;
}

#[tokio::test]
async fn endpoints_that_the_manager_lost_are_registered_again() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let attached = attach(&agent, test.backend("w1", "web")).await;
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
    let lost = attached.interfaces[0].endpoint.clone();
    world.commit(vec![Change::Delete { kind: Kind::Endpoint, id: lost.clone() }]);
    eventually("it runs again", || {
        let state = world.manager.state();
        let mut endpoints = state.endpoints.values();
        endpoints.next().is_some_and(|e| e.id != lost && e.state == EndpointState::Running)
    })
    .await;
    eventually("it takes flows again", || slots(&test.datapath, &service) == 1).await;
    let interface = &agent.attachments.list()[0].interfaces[0];
    assert_eq!(interface.address, attached.interfaces[0].address, "with the address it had");
    assert_ne!(interface.endpoint, lost);
}

#[tokio::test]
async fn endpoints_of_ours_that_belong_to_no_container_are_removed() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (_agent, _tasks) = test.start().await;
    let create = crate::api::EndpointCreate {
        node: test.node.id.clone(),
        container: Id::random(),
        name: "stray".to_owned(),
        networks: vec!["mynet".to_owned()],
        ..Default::default()
    };
    let who = Identity::Node(test.node.id.clone());
    world.manager.call(&who, Request::EndpointCreate(create)).await.expect("made");
    eventually("it is removed", || world.manager.state().endpoints.is_empty()).await;
}

#[tokio::test]
async fn a_node_that_was_removed_empties_its_maps_and_says_so() {
    let world = World::new();
    world.network("mynet").await;
    let second = world.add_node(11);
    let test = TestHost::new(&world, &second);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let me = second.id.clone();
    let endpoints = world.manager.state().endpoints.keys().cloned().collect::<Vec<_>>();
    let mut changes: Vec<_> =
        endpoints.into_iter().map(|id| Change::Delete { kind: Kind::Endpoint, id }).collect();
    changes.push(Change::Delete { kind: Kind::Node, id: me });
    world.commit(changes);
    eventually("nothing of the cluster is reachable", || {
        test.datapath.state().endpoints.is_empty()
    })
    .await;
    eventually("the status says why", || {
        let error = agent.status().ok().and_then(|s| s.last_error);
        error.is_some_and(|e| e.contains("overlay leave --force"))
    })
    .await;
}
