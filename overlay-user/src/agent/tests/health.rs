//! Health checks: their effect on the maps of every node, and its limits.

use super::*;
use crate::{
    api::{Detach, HealthChange, ServiceUpdate},
    model::Health,
};

/// A service that is checked all the time.
async fn checked(world: &World, retries: u32) -> Service {
    world.network("mynet").await;
    let health = HealthChange {
        probe: Some(Probe::Tcp(80)),
        interval_ms: Some(100),
        timeout_ms: Some(100),
        retries: Some(retries),
        ..HealthChange::default()
    };
    let create = ServiceCreate {
        name: "web".to_owned(),
        networks: vec!["mynet".to_owned()],
        drain_ms: Some(0),
        health,
        ..ServiceCreate::default()
    };
    world.administer(Request::ServiceCreate(create)).await
}

fn health(world: &World, name: &str) -> Option<Health> {
    let state = world.manager.state();
    state.endpoints.values().find(|e| e.name == name).map(|e| e.health)
}

#[tokio::test]
async fn a_backend_takes_flows_when_it_is_healthy_and_only_then() {
    let world = World::new();
    let service = checked(&world, 2).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let sick = test.backend("w1", "web");
    let netns = PathBuf::from(&sick.netns);
    lock(&test.host.unhealthy).insert(netns.clone());
    attach(&agent, sick).await;
    attach(&agent, test.backend("w2", "web")).await;
    eventually("the healthy one takes flows", || slots(&test.datapath, &service) == 1).await;
    eventually("the other is found out", || health(&world, "w1") == Some(Health::Unhealthy)).await;
    assert_eq!(slots(&test.datapath, &service), 1);
    assert_eq!(test.datapath.state().backends.len(), 2, "its flows would go on");
    lock(&test.host.unhealthy).clear();
    eventually("both take flows", || slots(&test.datapath, &service) == 2).await;
    lock(&test.host.unhealthy).insert(netns);
    eventually("it takes none again", || slots(&test.datapath, &service) == 1).await;
}

#[tokio::test]
async fn a_check_that_hangs_is_a_failure_and_delays_no_other() {
    let world = World::new();
    let service = checked(&world, 1).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let slow = test.backend("w1", "web");
    lock(&test.host.hanging).insert(PathBuf::from(&slow.netns));
    attach(&agent, slow).await;
    attach(&agent, test.backend("w2", "web")).await;
    eventually("the slow one is found out", || health(&world, "w1") == Some(Health::Unhealthy))
        .await;
    eventually("the other takes flows", || slots(&test.datapath, &service) == 1).await;
}

#[tokio::test]
async fn a_check_that_is_given_up_gives_its_backends_back() {
    let world = World::new();
    let service = checked(&world, 1).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let sick = test.backend("w1", "web");
    lock(&test.host.unhealthy).insert(PathBuf::from(&sick.netns));
    attach(&agent, sick).await;
    eventually("it is found out", || health(&world, "w1") == Some(Health::Unhealthy)).await;
    let update =
        |health| ServiceUpdate { reference: "web".to_owned(), health, ..ServiceUpdate::default() };
    let remove = update(HealthChange { remove: true, ..HealthChange::default() });
    let _: Service = world.administer(Request::ServiceUpdate(remove)).await;
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
    assert_eq!(health(&world, "w1"), Some(Health::Unknown));
    // A check that is added later takes it out only when it has failed.
    let add = HealthChange {
        probe: Some(Probe::Tcp(81)),
        interval_ms: Some(100),
        retries: Some(2),
        ..HealthChange::default()
    };
    let _: Service = world.administer(Request::ServiceUpdate(update(add))).await;
    eventually("it takes none again", || slots(&test.datapath, &service) == 0).await;
}

#[tokio::test]
async fn the_next_daemon_goes_on_checking() {
    let world = World::new();
    let service = checked(&world, 1).await;
    let test = TestHost::first(&world);
    let (agent, tasks) = test.start().await;
    let backend = test.backend("w1", "web");
    let netns = PathBuf::from(&backend.netns);
    attach(&agent, backend).await;
    eventually("it takes flows", || slots(&test.datapath, &service) == 1).await;
    tasks.end().await;
    drop(agent);
    let (agent, _tasks) = test.start().await;
    assert_eq!(slots(&test.datapath, &service), 1, "nothing is lost in between");
    lock(&test.host.unhealthy).insert(netns);
    eventually("it takes none", || slots(&test.datapath, &service) == 0).await;
    let detach = Detach { container: "w1".to_owned(), force: true };
    agent.attachments.detach(detach).await.expect("detached");
    assert_eq!(health(&world, "w1"), None);
}
