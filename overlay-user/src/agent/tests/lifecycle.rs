//! A container's life on a host with a manager that answers.

use overlay_common::{
    Be16,
    maps::{
        BACKEND_ACTIVE, BACKEND_DRAINING, CONNTRACK_FORWARD, Conntrack, ConntrackKey, PublishedKey,
    },
};

use super::*;
use crate::{
    agent::testing::port,
    api::Detach,
    model::{EndpointState, Protocol, PublishMode},
};

fn published(number: u16) -> PublishedKey {
    PublishedKey { port: Be16::new(number), proto: 6, pad: 0 }
}

fn force(container: &str) -> Detach {
    Detach { container: container.to_owned(), force: true }
}

#[tokio::test]
async fn the_start_sets_up_the_host_and_reports_the_node_ready() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let link = test.links.host_link().expect("a host link");
    assert_eq!(link.address.addr(), test.node.ingress_ip);
    assert_eq!(link.mac, Mac::of_ip(test.node.ingress_ip.into()));
    assert_eq!(test.links.vxlan(), BTreeMap::from([("ovl-vxlan".to_owned(), 4789)]));
    let config = test.datapath.config();
    assert_eq!(config.vtep, test.node.vtep());
    assert_eq!(config.host_ip, test.node.ingress_ip.into());
    assert_eq!((config.netns_cookie, config.vxlan_port.get()), (77, 4789));
    assert_eq!(test.datapath.containers(), ["ovl-prog"]);
    assert_eq!(test.datapath.underlay(), Some(("eth0".to_owned(), XdpMode::Off)));
    assert_eq!(test.datapath.cgroup(), Some("/cgroup".into()));
    let me = test.node.id.clone();
    eventually("the node is ready", || world.manager.state().nodes[&me].state == NodeState::Ready)
        .await;
    // The change that made the node ready is one more to apply.
    eventually("all is applied", || {
        let status = agent.status().expect("a status");
        status.applied == status.revision
    })
    .await;
    let status = agent.status().expect("a status");
    assert_eq!((status.connected, status.last_error), (true, None));
}

#[tokio::test]
async fn without_cgroup_v2_the_status_says_why_localhost_does_not_answer() {
    let world = World::new();
    let test = TestHost::first(&world);
    *lock(&test.host.cgroup) = None;
    let (agent, _tasks) = test.start().await;
    let why = agent.status().expect("a status").socket_programs.expect_err("a reason");
    assert!(why.contains("cgroup v2"), "{why}");
}

#[tokio::test]
async fn an_attached_container_has_a_link_map_entries_programs_and_names() {
    let world = World::new();
    let network = world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let attached = attach(&agent, test.attach("a", "mynet")).await;
    let [interface] = &attached.interfaces[..] else { panic!("one interface: {attached:?}") };
    assert_eq!((interface.interface.as_str(), interface.network.as_str()), ("eth0", "mynet"));
    assert_eq!((interface.gateway, interface.mtu), (Some(network.gateway), 1450));
    let link = &test.links.endpoints()[&interfaces::host_name(&interface.endpoint)];
    assert_eq!((link.address, link.gateway), (interface.address, Some(network.gateway)));
    assert_eq!(link.mac.to_string(), interface.mac);
    let ip = interface.address.addr();
    let state = test.datapath.state();
    assert!(state.links.values().any(|l| l.vni == network.vni && l.ip == ip.into()));
    let (attached_to, links) = endpoint_links(&test);
    assert_eq!(attached_to, links);
    assert!(lock(&test.host.served).contains(&attached.container));
    let endpoint = &world.manager.state().endpoints[&interface.endpoint];
    assert_eq!(endpoint.state, EndpointState::Running, "it waits for nothing");
}

#[tokio::test]
async fn detaching_leaves_nothing_behind() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let before = test.datapath.state();
    let attached = attach(&agent, test.attach("a", "mynet")).await;
    let removed = agent.attachments.detach(force("a")).await.expect("detached");
    assert_eq!(removed[0].id, attached.interfaces[0].endpoint);
    assert!(world.manager.state().endpoints.is_empty());
    assert_eq!(test.datapath.state(), before);
    assert_eq!(endpoint_links(&test), (vec![], vec![]));
    assert!(lock(&test.host.served).is_empty() && agent.attachments.list().is_empty());
    let error = agent.attachments.detach(force("a")).await.expect_err("it is gone");
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn two_backends_of_a_published_service_share_its_slots() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.backend("w1", "web")).await;
    attach(&agent, test.backend("w2", "web")).await;
    eventually("both take flows", || slots(&test.datapath, &service) == 2).await;
    let state = test.datapath.state();
    assert_eq!(state.published[&published(8080)].service, service.networks[0].number);
    agent.attachments.detach(force("w1")).await.expect("detached");
    assert_eq!(slots(&test.datapath, &service), 1);
}

#[tokio::test]
async fn a_backend_that_waits_takes_flows_when_it_listens() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let waits = Attach { wait_listen: true, ..test.backend("w1", "web") };
    let netns = waits.netns.clone();
    attach(&agent, waits).await;
    assert_eq!(agent.attachments.list()[0].state, EndpointState::Starting);
    assert_eq!(slots(&test.datapath, &service), 0);
    test.links.set_listening(netns, (Protocol::Tcp.number(), 80), true);
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
}

#[tokio::test]
async fn ports_of_a_container_alone_are_published_with_the_port_chosen() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let ports = vec![Port { published: None, ..port(1, 80) }];
    let attached = attach(&agent, Attach { ports, ..test.attach("a", "mynet") }).await;
    let chosen = attached.ports[0].published.expect("a port");
    eventually("the port is published", || {
        test.datapath.state().published.contains_key(&published(chosen))
    })
    .await;
    assert_eq!(agent.attachments.list()[0].service, None, "the service is not the user's");
    agent.attachments.detach(force("a")).await.expect("detached");
    eventually("it is given up", || test.datapath.state().published.is_empty()).await;
}

#[tokio::test]
async fn the_first_network_with_a_way_out_gets_the_default_route() {
    let world = World::new();
    let create = NetworkCreate {
        name: "closed".to_owned(),
        internal: true,
        attachable: true,
        ..NetworkCreate::default()
    };
    let _: Network = world.administer(Request::NetworkCreate(create)).await;
    world.network("open").await;
    world.network("other").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let networks = ["closed", "open", "other"].map(str::to_owned).to_vec();
    let attached = attach(&agent, Attach { networks, ..test.attach("a", "") }).await;
    let links = test.links.endpoints();
    let routed = attached.interfaces.iter().map(|i| {
        let link = &links[&interfaces::host_name(&i.endpoint)];
        (link.name.as_str(), i.network.as_str(), link.gateway.is_some())
    });
    let expected = [("eth0", "closed", false), ("eth1", "open", true), ("eth2", "other", false)];
    assert_eq!(routed.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_drained_backend_keeps_its_flows_for_the_drain_time() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 60_000).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let attached = attach(&agent, test.backend("w1", "web")).await;
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
    let number = world.manager.state().endpoints[&attached.interfaces[0].endpoint].number;
    assert_eq!(test.datapath.state().backends[&number].state, BACKEND_ACTIVE);
    let flow = Conntrack {
        backend: number,
        action: CONNTRACK_FORWARD,
        last_seen: clock::monotonic_ns(),
        ..Conntrack::default()
    };
    test.datapath.add_conntrack(ConntrackKey { proto: 6, ..ConntrackKey::default() }, flow);
    let drains = {
        let agent = agent.clone();
        tokio::spawn(async move { agent.attachments.drain("w1").await })
    };
    eventually("it drains", || test.datapath.state().backends[&number].state == BACKEND_DRAINING)
        .await;
    assert_eq!(slots(&test.datapath, &service), 0);
    assert!(!drains.is_finished(), "a flow is left");
    drains.abort();
}

#[tokio::test]
async fn a_backend_whose_flows_have_ended_everywhere_is_drained_at_once() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 60_000).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.backend("w1", "web")).await;
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
    let drained = agent.attachments.drain("w1").await.expect("drained");
    assert_eq!(drained.lagging, Vec::<String>::new());
    assert_eq!(slots(&test.datapath, &service), 0);
    let detach = Detach { container: "w1".to_owned(), force: false };
    agent.attachments.detach(detach).await.expect("detached");
    eventually("it is gone", || test.datapath.state().backends.is_empty()).await;
}

#[tokio::test]
async fn a_container_whose_process_ends_is_cleaned_up() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let mut process = tokio::process::Command::new("sleep").arg("600").spawn().expect("a process");
    let pid = process.id();
    attach(&agent, Attach { pid, ..test.attach("a", "mynet") }).await;
    assert_eq!(agent.attachments.list()[0].pid, pid);
    process.kill().await.expect("killed");
    eventually("it is detached", || agent.attachments.list().is_empty()).await;
    eventually("its endpoints are gone", || world.manager.state().endpoints.is_empty()).await;
    assert_eq!(endpoint_links(&test), (vec![], vec![]));
}

#[tokio::test]
async fn a_container_whose_namespace_vanishes_is_cleaned_up() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let container = test.attach("a", "mynet");
    let netns = container.netns.clone();
    attach(&agent, container).await;
    lock(&test.host.namespaces).remove(Path::new(&netns));
    test.links.remove_namespace(netns);
    agent.attachments.sweep_namespaces().await;
    assert!(agent.attachments.list().is_empty());
    assert!(world.manager.state().endpoints.is_empty());
}

#[tokio::test]
async fn a_host_mode_port_answers_where_its_backend_is_attached() {
    let world = World::new();
    world.network("mynet").await;
    let host_mode = Port { mode: PublishMode::Host, ..port(8080, 80) };
    world.service("web", "mynet", &[host_mode], 0).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    assert!(test.datapath.state().published.is_empty());
    attach(&agent, test.backend("w1", "web")).await;
    eventually("the port answers", || {
        test.datapath.state().published.contains_key(&published(8080))
    })
    .await;
}

#[tokio::test]
async fn two_nodes_see_each_others_endpoints_and_are_told_before_a_container_starts() {
    let world = World::new();
    world.network("mynet").await;
    let second = world.add_node(11);
    let (one, two) = (TestHost::first(&world), TestHost::new(&world, &second));
    let (agent, _tasks) = one.start().await;
    let (other, _other_tasks) = two.start().await;
    eventually("both nodes are ready", || {
        world.manager.state().nodes.values().all(|n| n.state == NodeState::Ready)
    })
    .await;
    attach(&agent, one.attach("a", "mynet")).await;
    let attached = attach(&other, two.attach("b", "mynet")).await;
    let ip = attached.interfaces[0].address.addr();
    let state = one.datapath.state();
    let seen = state.endpoints.iter().find(|(key, _)| key.ip == ip.into());
    assert_eq!(seen.expect("b is known").1.node, second.vtep());
}
