//! Watch streams in this process.

use futures_util::StreamExt as _;

use super::Cluster;
use crate::{
    manager::Controller,
    model::{Change, ClusterState, Object, WatchEvent},
};

fn apply(state: &mut ClusterState, event: WatchEvent) {
    match event {
        WatchEvent::Snapshot(snapshot) => *state = snapshot,
        WatchEvent::Changes { revision, changes } => {
            assert_eq!(revision, state.revision + 1);
            state.revision = revision;
            changes.into_iter().for_each(|change| state.apply(change));
        }
        WatchEvent::Alive { revision } => assert_eq!(revision, state.revision),
    }
}

#[tokio::test]
async fn a_watcher_gets_a_snapshot_and_then_every_change() {
    let cluster = Cluster::new();
    let mut watch = Box::pin(cluster.manager.watch());
    let mut state = ClusterState::default();
    let Some(WatchEvent::Snapshot(snapshot)) = watch.next().await else { panic!("a snapshot") };
    assert_eq!(snapshot, *cluster.manager.state());
    state.clone_from(&snapshot);
    for name in ["a", "b", "c"] {
        cluster.network(name).await.expect("made");
    }
    let end = cluster.manager.state();
    while state.revision < end.revision {
        apply(&mut state, watch.next().await.expect("an event"));
    }
    assert_eq!(state, *end);
}

#[tokio::test]
async fn a_quiet_stream_shows_that_it_is_alive() {
    let cluster = Cluster::new();
    let mut watch = Box::pin(cluster.manager.watch());
    let revision = cluster.manager.state().revision;
    assert!(matches!(watch.next().await, Some(WatchEvent::Snapshot(_))));
    for _ in 0..2 {
        assert_eq!(watch.next().await, Some(WatchEvent::Alive { revision }));
    }
}

#[tokio::test]
async fn a_watcher_that_fell_behind_gets_a_new_snapshot() {
    let cluster = Cluster::new();
    let mut watch = Box::pin(cluster.manager.watch());
    assert!(matches!(watch.next().await, Some(WatchEvent::Snapshot(_))));
    let object = cluster.manager.state().cluster.clone().expect("a cluster");
    // Another manager on the same store makes more commits than the backlog of a watcher holds.
    for revision in cluster.manager.state().revision.. {
        if revision > 10_000 {
            break;
        }
        let change = Change::Put(Object::Cluster(object.clone()));
        cluster.store.commit(revision, vec![change], vec![]).expect("committed");
    }
    cluster.network("last").await.expect("made");
    let Some(WatchEvent::Snapshot(snapshot)) = watch.next().await else { panic!("a snapshot") };
    assert_eq!(snapshot, *cluster.manager.state());
    cluster.network("more").await.expect("made");
    assert!(matches!(watch.next().await, Some(WatchEvent::Changes { .. })));
}

#[tokio::test]
async fn a_stream_ends_with_its_manager() {
    let cluster = Cluster::new();
    let mut watch = Box::pin(cluster.manager.watch());
    assert!(watch.next().await.is_some());
    drop(cluster);
    while watch.next().await.is_some() {}
}

#[tokio::test]
async fn the_manager_in_the_process_is_watched_and_called_like_any_other() {
    let cluster = Cluster::new();
    cluster.network("mynet").await.expect("made");
    let local = Controller::Local(cluster.manager.clone(), cluster.node.clone());
    let mut watch = local.watch().await.expect("a stream");
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Snapshot(_)))));
    let made: Vec<crate::model::Endpoint> =
        local.call(super::endpoint(&cluster.node, "c1", "mynet")).await.expect("made");
    assert_eq!(made[0].node, cluster.node);
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Changes { .. }))));
}
