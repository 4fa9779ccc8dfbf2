//! A daemon that starts where another one was.

use super::*;
use crate::{agent::testing::port, datapath::MapOp, model::EndpointState};

/// A host with two backends of a service, after the end of its daemon.
async fn stopped_host(world: &World) -> (TestHost, Service) {
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let test = TestHost::first(world);
    let (agent, tasks) = test.start().await;
    attach(&agent, test.backend("w1", "web")).await;
    attach(&agent, test.backend("w2", "web")).await;
    eventually("both take flows", || slots(&test.datapath, &service) == 2).await;
    tasks.end().await;
    test.datapath.take_applied();
    (test, service)
}

/// A started agent after which the maps show a live state.
async fn restarted(test: &TestHost) -> (Arc<TestAgent>, TestTasks) {
    let (agent, tasks) = test.start().await;
    eventually("a manager answers", || agent.cluster.live_state().is_some()).await;
    (agent, tasks)
}

#[tokio::test]
async fn a_restart_adopts_everything_and_writes_nothing() {
    let world = World::new();
    let (test, service) = stopped_host(&world).await;
    let links = test.links.endpoints();
    let (agent, _tasks) = restarted(&test).await;
    assert_eq!(test.datapath.take_applied(), Vec::<MapOp>::new());
    assert_eq!(test.links.endpoints(), links);
    assert_eq!(slots(&test.datapath, &service), 2);
    let containers = agent.attachments.list();
    assert_eq!(containers.iter().map(|c| c.name.as_str()).collect::<BTreeSet<_>>().len(), 2);
    assert!(containers.iter().all(|c| c.state == EndpointState::Running));
    assert_eq!(lock(&test.host.served).len(), 2, "names are served again");
}

#[tokio::test]
async fn what_is_kept_for_containers_that_no_longer_exist_is_let_go_of() {
    let world = World::new();
    let (test, _) = stopped_host(&world).await;
    let kept = lock(&test.host.served).clone();
    lock(&test.host.served).insert(Id::random());
    let (_agent, _tasks) = test.start().await;
    assert_eq!(*lock(&test.host.served), kept);
}

#[tokio::test]
async fn a_restart_without_managers_goes_on_from_the_last_known_state() {
    let world = World::new();
    let (test, service) = stopped_host(&world).await;
    test.wire.cut(true);
    test.host.shown.store(0, SeqCst);
    let (agent, _tasks) = test.start().await;
    assert_eq!(test.datapath.take_applied(), Vec::<MapOp>::new());
    assert_eq!(slots(&test.datapath, &service), 2);
    let status = agent.status().expect("a status");
    assert!(!status.connected && status.last_error.is_some());
    assert!(status.applied > 0);
    assert!(test.host.shown.load(SeqCst) > 0, "names are answered from it too");
    assert!(test.host.answered_from.load(SeqCst) > 0, "and not before it is there");
}

#[tokio::test]
async fn changes_made_meanwhile_are_caught_up_with() {
    let world = World::new();
    let (test, _) = stopped_host(&world).await;
    let other = world.service("other", "mynet", &[port(9090, 90)], 0).await;
    let (_agent, _tasks) = restarted(&test).await;
    eventually("the new service is in the maps", || {
        test.datapath.state().services.contains_key(&other.networks[0].number)
    })
    .await;
}

#[tokio::test]
async fn containers_whose_namespace_went_meanwhile_are_cleaned_up() {
    let world = World::new();
    let (test, service) = stopped_host(&world).await;
    lock(&test.host.namespaces).remove(Path::new("/run/netns/w1"));
    test.links.remove_namespace("/run/netns/w1");
    let (agent, _tasks) = restarted(&test).await;
    assert_eq!(agent.attachments.list()[0].name, "w2");
    eventually("its endpoint is gone", || world.manager.state().endpoints.len() == 1).await;
    eventually("one slot is left", || slots(&test.datapath, &service) == 1).await;
    let (attached, links) = endpoint_links(&test);
    assert_eq!((attached.len(), links.len()), (1, 1));
}

#[tokio::test]
async fn a_namespace_of_the_same_name_is_not_mistaken_for_the_one_attached() {
    let world = World::new();
    let (test, _) = stopped_host(&world).await;
    test.host.add_namespace("/run/netns/w1");
    let (agent, _tasks) = restarted(&test).await;
    assert_eq!(agent.attachments.list().len(), 1);
    assert_eq!(endpoint_links(&test).1.len(), 1);
}

#[tokio::test]
async fn a_process_id_that_was_given_again_is_not_mistaken_for_the_process() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, tasks) = test.start().await;
    let own = Attach { pid: Some(std::process::id()), ..test.attach("a", "mynet") };
    attach(&agent, own).await;
    tasks.end().await;
    let path = test.paths().containers();
    let mut records: Value = json_file::read(&path, "").expect("readable").expect("written");
    let started = &mut records["containers"][0]["process"]["started"];
    *started = (started.as_u64().expect("a time") + 1).into();
    json_file::write(&path, &records).expect("saved");
    let (agent, _tasks) = restarted(&test).await;
    assert!(agent.attachments.list().is_empty());
    eventually("its endpoint is gone", || world.manager.state().endpoints.is_empty()).await;
}

#[tokio::test]
async fn after_a_reboot_no_container_is_left() {
    let world = World::new();
    let (test, _) = stopped_host(&world).await;
    *lock(&test.host.boot) = "another boot".to_owned();
    for netns in ["/run/netns/w1", "/run/netns/w2"] {
        test.links.remove_namespace(netns);
    }
    let (agent, _tasks) = restarted(&test).await;
    assert!(agent.attachments.list().is_empty());
    eventually("their endpoints are gone", || world.manager.state().endpoints.is_empty()).await;
}

#[tokio::test]
async fn what_a_daemon_left_in_the_middle_of_attaching_is_removed() {
    let world = World::new();
    let (test, _) = stopped_host(&world).await;
    // As if it had ended before it wrote the containers down.
    std::fs::remove_file(test.paths().containers()).expect("removed");
    let (agent, _tasks) = restarted(&test).await;
    assert!(agent.attachments.list().is_empty());
    assert_eq!(endpoint_links(&test), (vec![], vec![]));
    eventually("the endpoints are gone", || world.manager.state().endpoints.is_empty()).await;
}

#[tokio::test]
async fn a_backend_that_was_starting_is_still_waited_for() {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let test = TestHost::first(&world);
    let (agent, tasks) = test.start().await;
    attach(&agent, Attach { wait_listen: true, ..test.backend("w1", "web") }).await;
    tasks.end().await;
    let (_agent, _tasks) = restarted(&test).await;
    assert_eq!(slots(&test.datapath, &service), 0);
    test.links.set_listening("/run/netns/w1", (6, 80), true);
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
}
