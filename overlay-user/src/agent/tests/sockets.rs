//! Sockets that are connected to a backend in place of a VIP, as the agent sees them.

use overlay_common::maps::{BACKEND_DRAINING, EndpointKey, STALE_RESETS, SockFlow};

use super::*;
use crate::{agent::testing::port, api::Detach};

/// The cookie that the memory host has for a container's namespace.
fn cookie(test: &TestHost, name: &str) -> u64 {
    let path = PathBuf::from(format!("/run/netns/{name}"));
    test.host.netns_cookie_of(&path).expect("a namespace")
}

/// A host with backend `w1` of service `web`, and the peers of its sockets.
async fn with_backend(
    world: &World,
    drain_ms: u64,
) -> (TestHost, Arc<TestAgent>, TestTasks, SockFlow) {
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], drain_ms).await;
    let test = TestHost::first(world);
    let (agent, tasks) = test.start().await;
    let attached = attach(&agent, test.backend("w1", "web")).await;
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
    let number = world.manager.state().endpoints[&attached.interfaces[0].endpoint].number;
    let backend = test.datapath.state().backends[&number];
    let flow = SockFlow {
        ip: backend.ip,
        vni: backend.vni,
        service: service.networks[0].number,
        backend: number,
        proto: 6,
        netns: cookie(&test, "w1"),
        since: clock::monotonic_ns(),
        ..SockFlow::default()
    };
    (test, agent, tasks, flow)
}

#[tokio::test]
async fn namespaces_of_containers_are_known_to_the_programs_for_as_long_as_they_are_attached() {
    let world = World::new();
    let network = world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let spaces = test.datapath.state().netns;
    assert_eq!(spaces[&cookie(&test, "a")].networks[0].vni, network.vni);
    let detach = Detach { container: "a".to_owned(), force: false };
    agent.attachments.detach(detach).await.expect("detached");
    assert!(test.datapath.state().netns.is_empty());
}

#[tokio::test]
async fn no_namespace_is_known_to_the_programs_of_a_host_that_balances_by_packets() {
    let world = World::new();
    world.network("mynet").await;
    let mut test = TestHost::first(&world);
    test.config.socket_lb = false;
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    assert!(test.datapath.state().netns.is_empty());
}

#[tokio::test]
async fn a_backend_drains_for_as_long_as_a_socket_is_connected_to_it() {
    let world = World::new();
    let (test, agent, _tasks, flow) = with_backend(&world, 60_000).await;
    test.datapath.add_socket(1, flow);
    let drains = {
        let agent = agent.clone();
        tokio::spawn(async move { agent.attachments.drain("w1").await })
    };
    let number = flow.backend;
    eventually("it drains", || test.datapath.state().backends[&number].state == BACKEND_DRAINING)
        .await;
    eventually("it is counted", || agent.counters.draining.flows().get(&number) == Some(&1)).await;
    assert!(!drains.is_finished(), "a connection is left");
    test.datapath.forget_socket(1).expect("closed");
    drains.await.expect("no panic").expect("drained");
}

#[tokio::test]
async fn the_address_of_a_backend_is_kept_while_a_socket_is_connected_to_it() {
    let world = World::new();
    let (test, agent, _tasks, flow) = with_backend(&world, 0).await;
    test.datapath.add_socket(1, flow);
    let detach = Detach { container: "w1".to_owned(), force: true };
    agent.attachments.detach(detach).await.expect("detached");
    let key = EndpointKey { vni: flow.vni, ip: flow.ip };
    assert_eq!(test.datapath.state().stale_backends, BTreeMap::from([(key, STALE_RESETS)]));
    test.datapath.forget_socket(1).expect("closed");
    agent.counters.sockets.look(agent.attachments.namespaces()).await;
    eventually("it is forgotten", || test.datapath.state().stale_backends.is_empty()).await;
}

#[tokio::test]
async fn a_connection_that_was_made_while_its_backend_went_is_found_at_the_next_look() {
    let world = World::new();
    let (test, agent, _tasks, flow) = with_backend(&world, 0).await;
    let detach = Detach { container: "w1".to_owned(), force: true };
    agent.attachments.detach(detach).await.expect("detached");
    assert!(test.datapath.state().stale_backends.is_empty());
    test.datapath.add_socket(1, flow);
    agent.counters.sockets.look(agent.attachments.namespaces()).await;
    eventually("it is found", || test.datapath.state().stale_backends.len() == 1).await;
}

#[tokio::test]
async fn sockets_that_the_kernel_let_go_without_a_word_are_forgotten() {
    let world = World::new();
    let (test, agent, _tasks, flow) = with_backend(&world, 0).await;
    let old = SockFlow { since: 0, ..flow };
    let of_host = SockFlow { netns: 77, backend: 0, ..old };
    let sockets = [
        (1, old),
        (2, old),
        (3, flow),
        (4, SockFlow { netns: 5, ..old }),
        (5, of_host),
        (6, of_host),
        (7, SockFlow { proto: 17, ..of_host }),
    ];
    for (cookie, flow) in sockets {
        test.datapath.add_socket(cookie, flow);
    }
    *lock(&test.host.sockets) =
        [(Some("/run/netns/w1".into()), BTreeSet::from([2])), (None, BTreeSet::from([5]))].into();
    let listed = test.datapath.sockets().expect("listed");
    let namespaces = agent.attachments.namespaces();
    agent.counters.sockets.sweep(&listed, &namespaces).expect("swept");
    let left: Vec<u64> = test.datapath.sockets().expect("listed").into_keys().collect();
    // 3 is just being connected; 7 is UDP's, which always says that it ends.
    assert_eq!(left, [2, 3, 5, 7]);
}
