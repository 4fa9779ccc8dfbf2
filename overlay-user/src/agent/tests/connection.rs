//! Following the managers when they come and go.

use super::*;
use crate::agent::testing::port;

#[tokio::test]
async fn a_cut_connection_is_reported_and_healed_with_everything_that_happened_meanwhile() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    test.wire.cut(true);
    eventually("the cut is noticed", || agent.cluster.live_state().is_none()).await;
    let status = agent.status().expect("a status");
    assert!(!status.connected);
    assert!(status.last_error.expect("an error").contains("cut by the test"));
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let number = service.networks[0].number;
    assert!(!test.datapath.state().services.contains_key(&number));
    test.wire.cut(false);
    eventually("the maps show the service", || {
        test.datapath.state().services.contains_key(&number)
    })
    .await;
    eventually("the error is overcome", || {
        agent.status().is_ok_and(|s| s.connected && s.last_error.is_none())
    })
    .await;
}

#[tokio::test]
async fn a_first_start_without_managers_waits_for_them_and_serves_meanwhile() {
    let world = World::new();
    let test = TestHost::first(&world);
    test.wire.cut(true);
    let (agent, _tasks) = test.start().await;
    let status = agent.status().expect("a status");
    assert_eq!((status.connected, status.applied), (false, 0));
    assert!(test.datapath.underlay().is_none(), "no program runs without a configuration");
    test.wire.cut(false);
    eventually("the host is set up", || test.datapath.underlay().is_some()).await;
    assert_eq!(test.datapath.config().vtep, test.node.vtep());
}

#[tokio::test]
async fn containers_can_be_detached_without_managers_and_are_forgotten_there_later() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    test.wire.cut(true);
    let detach = crate::api::Detach { container: "a".to_owned(), force: true };
    agent.attachments.detach(detach).await.expect("detached here");
    assert_eq!(endpoint_links(&test), (vec![], vec![]));
    assert_eq!(world.manager.state().endpoints.len(), 1);
    test.wire.cut(false);
    eventually("it is forgotten there", || world.manager.state().endpoints.is_empty()).await;
}

#[tokio::test]
async fn attaching_without_managers_is_refused_and_leaves_nothing() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    test.wire.cut(true);
    let error = agent.attachments.attach(test.attach("a", "mynet")).await.expect_err("no manager");
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(endpoint_links(&test), (vec![], vec![]));
    assert!(agent.attachments.list().is_empty());
}

#[tokio::test]
async fn a_manager_of_another_cluster_is_not_followed() {
    let world = World::new();
    let mut test = TestHost::first(&world);
    test.config.cluster = Id::random();
    let (agent, _tasks) = test.start().await;
    let error = agent.status().expect("a status").last_error.expect("an error");
    assert!(error.contains("of cluster"), "{error}");
    assert!(test.datapath.underlay().is_none());
}

#[tokio::test]
async fn the_state_is_written_for_the_next_start() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (_agent, tasks) = test.start().await;
    world.network("mynet").await;
    tasks.end().await;
    let cached = follow::StateCache::new(&test.agent().context).load();
    assert!(cached.expect("a state").cluster.is_some());
}

#[tokio::test]
async fn what_a_manager_says_of_others_right_after_it_was_away_is_not_believed_at_once() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let (first, second) = (TestHost::first(&world), TestHost::new(&world, &world.add_node(11)));
    let (agent, _tasks) = first.start().await;
    let (other, _others_tasks) = second.start().await;
    attach(&other, second.backend("w1", "web")).await;
    eventually("it takes flows", || slots(&first.datapath, &service) == 1).await;
    for test in [&first, &second] {
        test.wire.cut(true);
    }
    eventually("the cut is noticed", || agent.cluster.live_state().is_none()).await;
    let mut node = world.manager.state().nodes[&second.node.id].clone();
    node.state = NodeState::Down;
    world.commit(vec![Change::Put(Object::Node(node))]);
    first.wire.cut(false);
    let revision = world.store.load().expect("a state").revision;
    eventually("the maps are up to date", || *agent.reconciler.progress().borrow() == revision)
        .await;
    assert_eq!(slots(&first.datapath, &service), 1, "it was ready when it was last heard of");
    eventually("it is believed in the end", || slots(&first.datapath, &service) == 0).await;
}
