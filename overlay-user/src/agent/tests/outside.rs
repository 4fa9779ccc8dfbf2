//! The interfaces that lead outside, and the flows there.

use overlay_common::{
    Be32,
    maps::{CONNTRACK_MASQUERADE, Conntrack, ConntrackKey, SnatUsage},
    wire::PROTO_UDP,
};

use super::*;
use crate::{
    agent::{clock::monotonic_ns, testing::port},
    datapath::DatapathCall,
    model::Protocol,
};

const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A second interface with an address.
fn plug(test: &TestHost, name: &str) -> u32 {
    plug_with(test, name, &[SECOND])
}

fn plug_with(test: &TestHost, name: &str, addresses: &[Ipv4Addr]) -> u32 {
    let facts = UnderlayFacts {
        ifindex: 0,
        mac: Mac::new([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        checksums: false,
    };
    test.links.add_underlay(name, facts, addresses)
}

#[tokio::test]
async fn the_program_follows_the_interfaces_that_lead_outside() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    assert!(test.datapath.outside().is_empty(), "the underlay has a program of its own");
    let addresses: Vec<Be32> = test.datapath.state().egress.values().copied().collect();
    assert_eq!(addresses, [test.node.vtep()]);

    let ifindex = plug(&test, "eth1");
    agent.host.look_around().await.expect("looked");
    eventually("flows may leave by it", || {
        test.datapath.state().egress.get(&ifindex) == Some(&SECOND.into())
    })
    .await;
    assert_eq!(test.datapath.outside(), ["eth1"]);

    test.links.remove_underlay("eth1");
    agent.host.look_around().await.expect("looked");
    eventually("it is let go", || test.datapath.outside().is_empty()).await;
    assert!(!test.datapath.state().egress.contains_key(&ifindex));
}

#[tokio::test]
async fn an_interface_without_an_address_has_the_program_too_but_nothing_leaves_by_it() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let endpoint = test.datapath.state().links.keys().copied().collect::<Vec<_>>();
    let ifindex = plug_with(&test, "eth1", &[]);
    let ours = crate::agent::interfaces::host_name(&crate::model::Id::random());
    plug_with(&test, &ours, &[]);
    agent.host.look_around().await.expect("looked");
    eventually("strangers are stopped there", || test.datapath.outside() == ["eth1"]).await;
    let state = test.datapath.state();
    assert!(!state.egress.contains_key(&ifindex), "{:?}", state.egress);
    assert_eq!(state.links.keys().copied().collect::<Vec<_>>(), endpoint);

    test.links.remove_underlay("eth1");
    agent.host.look_around().await.expect("looked");
    eventually("it is let go", || test.datapath.outside().is_empty()).await;
}

#[tokio::test]
async fn a_way_out_that_went_while_no_daemon_ran_is_let_go() {
    let world = World::new();
    let test = TestHost::first(&world);
    plug(&test, "eth1");
    let (_, tasks) = test.start().await;
    assert_eq!(test.datapath.outside(), ["eth1"]);
    tasks.end().await;
    test.links.remove_underlay("eth1");
    let (_agent, _tasks) = test.start().await;
    assert!(test.datapath.outside().is_empty());
    assert_eq!(test.datapath.underlay().map(|(name, _)| name).as_deref(), Some("eth0"));
}

#[tokio::test]
async fn an_interface_that_refuses_the_program_is_told_and_is_no_way_out() {
    let world = World::new();
    let test = TestHost::first(&world);
    let ifindex = plug(&test, "eth1");
    test.datapath.fail(DatapathCall::AttachOutside, 0, usize::MAX);
    let (agent, _tasks) = test.start().await;
    assert!(!test.datapath.state().egress.contains_key(&ifindex));
    let told = agent.status().expect("a status").last_error.expect("an error");
    assert!(told.contains("lead outside"), "{told}");
    test.datapath.heal(DatapathCall::AttachOutside);
    agent.repair().await.expect("repaired");
    assert!(test.datapath.state().egress.contains_key(&ifindex));
    assert_eq!(agent.status().expect("a status").last_error, None);
}

#[tokio::test]
async fn ports_that_the_hosts_sockets_may_be_given_are_told() {
    let world = World::new();
    let test = TestHost::first(&world);
    *lock(&test.host.local_ports) = Some((32_768, 60_999));
    let (agent, _tasks) = test.start().await;
    assert_eq!(agent.status().expect("a status").last_error, None);
    *lock(&test.host.local_ports) = Some((1024, 65_535));
    agent.host.look_around().await.expect("looked");
    let told = agent.status().expect("a status").last_error.expect("an error");
    assert!(told.contains("ip_local_port_range") && told.contains("61000"), "{told}");
}

#[tokio::test]
async fn numbers_of_flows_are_corrected_near_the_limit_and_forgotten_with_the_endpoint() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let state = test.datapath.state();
    let (ifindex, link) = state.links.iter().find(|(_, l)| l.vni > 4096).expect("a link");
    let flow = |port| ConntrackKey {
        saddr: link.ip,
        sport: overlay_common::Be16::new(port),
        vni: link.vni,
        proto: PROTO_UDP,
        ..ConntrackKey::default()
    };
    for port in 0..3 {
        let (action, last_seen) = (CONNTRACK_MASQUERADE, monotonic_ns());
        let entry = Conntrack { action, last_seen, ..Conntrack::default() };
        test.datapath.add_conntrack(flow(port), entry);
    }
    let full = SnatUsage { flows: OUTSIDE_FLOWS, ..SnatUsage::default() };
    test.datapath.set_snat_usage(*ifindex, Some(full)).expect("set");
    test.datapath.set_snat_usage(9_999, Some(full)).expect("set");
    agent.counters.egress.count_now().expect("counted");
    let usage = test.datapath.snat_usage().expect("read");
    assert_eq!(usage.keys().collect::<Vec<_>>(), [ifindex], "the other one is no endpoint's");
    assert_eq!(usage[ifindex].flows, 3);
    assert!(usage[ifindex].counted > 0);
}

#[tokio::test]
async fn published_ports_that_programs_of_the_host_listen_on_are_told() {
    let world = World::new();
    world.network("mynet").await;
    let (web, dns) = (port(8080, 80), Port { protocol: Protocol::Udp, ..port(53, 53) });
    world.service("web", "mynet", &[web, dns], 0).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let told = async || {
        agent.host.look_for_shadowed_ports().await;
        agent.status().expect("a status").last_error
    };
    let own = "/proc/thread-self/ns/net";
    // Another protocol's port is nothing to it.
    test.links.set_listening(own, (6, 53), true);
    assert_eq!(told().await, None);
    test.links.set_listening(own, (17, 53), true);
    let error = told().await.expect("told");
    assert!(error.contains("53/udp") && !error.contains("8080"), "{error}");
    test.links.set_listening(own, (17, 53), false);
    assert_eq!(told().await, None);
}
