//! A failure at any step of attaching leaves everything as it was.

use super::*;
use crate::{agent::testing::port, datapath::DatapathCall, link::LinkCall};

/// Makes one step fail, attaches, and checks that nothing is left and that it works when healed.
async fn fails_cleanly(
    what: &str,
    fail: impl FnOnce(&TestHost),
    heal: impl FnOnce(&TestHost),
) -> ApiError {
    let world = World::new();
    world.network("mynet").await;
    let service = world.service("web", "mynet", &[port(8080, 80)], 0).await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let before = test.datapath.state();
    fail(&test);
    let error = agent.attachments.attach(test.backend("w1", "web")).await.expect_err(what);
    heal(&test);
    assert!(agent.attachments.list().is_empty(), "{what}");
    assert!(lock(&test.host.served).is_empty(), "{what}");
    assert_eq!(test.links.endpoints(), BTreeMap::new(), "{what}");
    eventually("the manager has forgotten it", || world.manager.state().endpoints.is_empty()).await;
    eventually("the maps are as before", || test.datapath.state() == before).await;
    assert_eq!(endpoint_links(&test), (vec![], vec![]), "{what}");
    let saved = std::fs::read_to_string(test.paths().containers()).expect("written");
    assert!(!saved.contains("w1"), "{saved}");
    attach(&agent, test.backend("w2", "web")).await;
    eventually("another one works", || slots(&test.datapath, &service) == 1).await;
    error
}

#[tokio::test]
async fn when_the_manager_refuses() {
    let error =
        fails_cleanly("endpoint_create", |t| t.wire.fail("endpoint_create"), |t| t.wire.heal())
            .await;
    assert!(error.message.contains("made to fail"), "{error}");
}

#[tokio::test]
async fn when_the_link_cannot_be_made() {
    fails_cleanly("link", |t| t.links.fail(LinkCall::EnsureEndpointLink, 1), |_| ()).await;
}

#[tokio::test]
async fn when_the_maps_cannot_be_written() {
    fails_cleanly(
        "maps",
        |t| t.datapath.fail(DatapathCall::Apply, 1, usize::MAX),
        |t| t.datapath.heal(DatapathCall::Apply),
    )
    .await;
}

#[tokio::test]
async fn when_the_program_cannot_be_attached() {
    fails_cleanly("program", |t| t.datapath.fail(DatapathCall::AttachContainer, 0, 1), |_| ())
        .await;
}

#[tokio::test]
async fn when_the_names_cannot_be_served() {
    fails_cleanly(
        "names",
        |t| t.host.names_fail.store(true, SeqCst),
        |t| t.host.names_fail.store(false, SeqCst),
    )
    .await;
}

#[tokio::test]
async fn when_it_cannot_be_set_running() {
    fails_cleanly("running", |t| t.wire.fail("endpoint_update"), |t| t.wire.heal()).await;
}

#[tokio::test]
async fn when_neither_running_nor_removing_works_the_endpoint_is_removed_later() {
    let fail = |t: &TestHost| {
        t.wire.fail("endpoint_update");
        t.wire.fail("endpoint_remove");
    };
    fails_cleanly("running and removing", fail, |t| t.wire.heal()).await;
}

#[tokio::test]
async fn what_is_wrong_by_itself_is_refused_before_anything_is_made() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let good = || test.attach("a", "mynet");
    let cases: Vec<(Attach, ErrorCode, &str)> = vec![
        (Attach { netns: "/nowhere".to_owned(), ..good() }, ErrorCode::NotFound, "/nowhere"),
        (Attach { name: Some("a b".to_owned()), ..good() }, ErrorCode::Invalid, "\"a b\""),
        (Attach { networks: vec![], ..good() }, ErrorCode::Invalid, "--network"),
        (Attach { networks: vec!["nix".to_owned()], ..good() }, ErrorCode::NotFound, "nix"),
        (Attach { pid: Some(u32::MAX), ..good() }, ErrorCode::NotFound, "4294967295"),
        (Attach { interface_prefix: Some("a/b".to_owned()), ..good() }, ErrorCode::Invalid, "a/b"),
    ];
    for (request, code, says) in cases {
        let error = agent.attachments.attach(request).await.expect_err(says);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(world.manager.state().endpoints.is_empty());
    assert_eq!(endpoint_links(&test), (vec![], vec![]));
}

#[tokio::test]
async fn a_namespace_that_is_attached_already_is_refused() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let first = test.attach("a", "mynet");
    attach(&agent, first.clone()).await;
    let same_namespace = Attach { name: Some("b".to_owned()), ..first };
    let error = agent.attachments.attach(same_namespace).await.expect_err("the namespace is taken");
    assert!(error.code == ErrorCode::Conflict && error.to_string().contains("detach"), "{error}");
    assert_eq!(agent.attachments.list().len(), 1);
}

#[tokio::test]
async fn names_are_unique_on_a_network_and_ids_tell_the_others_apart() {
    let world = World::new();
    world.network("mynet").await;
    world.network("other").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let named = |attach: Attach| Attach { name: Some("a".to_owned()), ..attach };
    let first = attach(&agent, named(test.attach("one", "mynet"))).await;
    let error =
        agent.attachments.attach(named(test.attach("two", "mynet"))).await.expect_err("taken");
    assert_eq!(error.code, ErrorCode::Conflict);
    attach(&agent, named(test.attach("three", "other"))).await;
    let error = agent.attachments.containers.find("a").err().expect("two are meant");
    assert!(error.to_string().contains(first.container.short()), "{error}");
    assert!(agent.attachments.containers.find(first.container.short()).is_ok());
}

#[tokio::test]
async fn a_first_start_that_fails_leaves_nothing_on_the_host() {
    let world = World::new();
    let test = TestHost::first(&world);
    test.datapath.fail(DatapathCall::AttachUnderlay, 0, 1);
    let error = test.agent().start().await.err().expect("refused");
    assert!(error.to_string().contains("AttachUnderlay"), "{error}");
    assert_eq!((test.links.vxlan(), test.links.host_link()), (BTreeMap::new(), None));
    assert_eq!(test.datapath.containers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_later_start_that_fails_leaves_what_an_earlier_one_made() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (_agent, tasks) = test.start().await;
    tasks.end().await;
    test.datapath.fail(DatapathCall::AttachUnderlay, 0, 1);
    test.agent().start().await.err().expect("refused");
    assert!(test.links.host_link().is_some());
    assert_eq!(test.datapath.containers(), ["ovl-prog"]);
}
