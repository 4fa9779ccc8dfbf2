//! Calls in this process: permissions, several writers, heartbeats, and waits for nodes.

use std::{collections::HashSet, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

use super::{Cluster, endpoint, heartbeat, init, network, refused};
use crate::{
    api::{
        ContainerRef, EndpointCreate, EndpointUpdate, ErrorCode, HeartbeatAnswer, Identity, Join,
        Joined, NodeAddresses, NodeRemove, NodeUpdate, Reference, Request, ServiceCreate,
        ServiceUpdate, Sync, SyncAnswer, TokenCreate, TokenInfo,
    },
    manager::Manager,
    model::{
        Availability, Change, ClusterState, EndpointState, Id, Network, Node, NodeState, Object,
        WatchEvent,
    },
    pki::{JoinToken, NodeKey},
    store::{MemoryStore, RedbStore, StoreError},
};

fn reference(text: &str) -> Reference {
    Reference { reference: text.to_owned() }
}

/// Returns every kind of call, for a node and a container.
fn every_call(node: &Id) -> Vec<Request> {
    let container = Id::random();
    vec![
        Request::State {},
        network("n"),
        Request::NetworkRemove(reference("n")),
        Request::ServiceCreate(ServiceCreate { name: "s".to_owned(), ..Default::default() }),
        Request::ServiceUpdate(ServiceUpdate { reference: "s".to_owned(), ..Default::default() }),
        Request::ServiceRemove(reference("s")),
        Request::NodeUpdate(NodeUpdate {
            reference: node.to_string(),
            availability: Availability::Drain,
        }),
        Request::TokenCreate(TokenCreate { ttl_secs: 60 }),
        Request::TokenList {},
        Request::TokenRemove(reference("t")),
        Request::Join(Join {
            secret: "wrong".to_owned(),
            name: "h9".to_owned(),
            data_path_addr: "172.16.1.99".parse().expect("an address"),
            csr_pem: String::new(),
        }),
        Request::EndpointCreate(EndpointCreate { node: node.clone(), ..Default::default() }),
        Request::EndpointUpdate(EndpointUpdate {
            container: container.clone(),
            state: EndpointState::Running,
        }),
        Request::EndpointRemove(ContainerRef { container }),
        heartbeat(node, 0),
        Request::NodeAddresses(NodeAddresses { node: node.clone(), addresses6: Vec::new() }),
        Request::Sync(Sync { revision: None, timeout_ms: 0 }),
        // This call comes last, because a removed node may make no more calls.
        Request::NodeRemove(NodeRemove { reference: node.to_string(), force: false }),
    ]
}

fn method(request: &Request) -> String {
    let value = serde_json::to_value(request).expect("JSON");
    value["method"].as_str().expect("a method").to_owned()
}

/// Returns the calls that are rejected because of the caller and not because of their contents.
async fn refused_calls(cluster: &Cluster, who: &Identity, node: &Id) -> HashSet<String> {
    let mut refused = HashSet::new();
    for request in every_call(node) {
        let method = method(&request);
        let result = cluster.manager.call(who, request).await;
        // `join` is rejected because of its token, for every caller.
        let by_rank = |code| match code {
            ErrorCode::Forbidden => true,
            ErrorCode::Unauthenticated => method != "join",
            _ => false,
        };
        if result.is_err_and(|e| by_rank(e.code)) {
            refused.insert(method);
        }
    }
    refused
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Adds a node without the network.
async fn join(cluster: &Cluster, name: &str, last: u8) -> Id {
    let secret = cluster.token().await.parse::<JoinToken>().expect("a token").credential();
    let request = Request::Join(Join {
        secret,
        name: name.to_owned(),
        data_path_addr: [172, 16, 1, last].into(),
        csr_pem: NodeKey::generate().expect("a key").csr_pem,
    });
    let joined: Joined = cluster.call(&Identity::Anonymous, request).await.expect("joined");
    joined.node.id
}

#[tokio::test]
async fn each_caller_may_do_what_it_needs_and_no_more() {
    let cluster = Cluster::new();
    let h2 = join(&cluster, "h2", 11).await;
    let node = Identity::Node(h2.clone());

    let administrator = refused_calls(&cluster, &Identity::Administrator, &cluster.node).await;
    let for_nodes = set(&[
        "endpoint_create",
        "endpoint_update",
        "endpoint_remove",
        "heartbeat",
        "node_addresses",
    ]);
    assert_eq!(administrator, for_nodes);

    let all: HashSet<String> = every_call(&h2).iter().map(method).collect();
    let anonymous = refused_calls(&cluster, &Identity::Anonymous, &h2).await;
    assert_eq!(&all - &anonymous, set(&["join"]));

    let own = set(&[
        "state",
        "sync",
        "heartbeat",
        "node_addresses",
        "endpoint_create",
        "endpoint_update",
        "endpoint_remove",
    ]);
    let for_another = refused_calls(&cluster, &node, &cluster.node).await;
    // These calls look the container up, and it does not exist.
    let looked_up = set(&["state", "sync", "endpoint_update", "endpoint_remove"]);
    assert_eq!(&all - &for_another, looked_up);
    let for_itself = refused_calls(&cluster, &node, &h2).await;
    assert_eq!(&all - &for_itself, &own | &set(&["node_remove"]));
}

#[tokio::test]
async fn a_removed_node_is_refused_every_call() {
    let cluster = Cluster::new();
    let h2 = join(&cluster, "h2", 11).await;
    let remove = NodeRemove { reference: "h2".to_owned(), force: false };
    cluster.admin::<Node>(Request::NodeRemove(remove)).await.expect("removed");
    for request in every_call(&h2) {
        let method = method(&request);
        let result = cluster.manager.call(&Identity::Node(h2.clone()), request).await;
        refused(result, ErrorCode::Forbidden, &["was removed from the cluster", "overlay join"]);
        assert!(!method.is_empty());
    }
}

#[tokio::test]
async fn a_node_touches_no_other_nodes_containers() {
    let cluster = Cluster::new();
    cluster.network("mynet").await.expect("a network");
    let h2 = join(&cluster, "h2", 11).await;
    let own = Identity::Node(cluster.node.clone());
    let made: Vec<crate::model::Endpoint> =
        cluster.call(&own, endpoint(&cluster.node, "c1", "mynet")).await.expect("made");
    let container = made[0].container.clone();
    let other = Identity::Node(h2);
    for request in [
        Request::EndpointRemove(ContainerRef { container: container.clone() }),
        Request::EndpointUpdate(EndpointUpdate {
            container: container.clone(),
            state: EndpointState::Draining,
        }),
        endpoint(&cluster.node, "c2", "mynet"),
        heartbeat(&cluster.node, 1),
        Request::NodeRemove(NodeRemove { reference: "h1".to_owned(), force: true }),
    ] {
        refused(cluster.manager.call(&other, request).await, ErrorCode::Forbidden, &["node"]);
    }
    assert_eq!(cluster.manager.state().endpoints.len(), 1);
    let remove = Request::EndpointRemove(ContainerRef { container });
    let removed: Vec<crate::model::Endpoint> = cluster.call(&own, remove).await.expect("removed");
    assert_eq!(removed.len(), 1);
}

#[tokio::test]
async fn an_empty_store_is_not_opened_and_a_full_one_not_overwritten() {
    let empty = Arc::new(MemoryStore::new());
    refused(Manager::open(empty), ErrorCode::Internal, &["no cluster", "overlay init"]);
    let cluster = Cluster::new();
    let state = cluster.store.load().expect("loaded");
    assert_eq!(*cluster.manager.state(), state);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_managers_on_one_store_agree_on_who_got_what() {
    let cluster = Cluster::new();
    let other = Manager::open(Arc::clone(&cluster.store)).expect("another manager");
    let create = |manager: Arc<Manager>, prefix: &'static str| async move {
        for i in 0..40 {
            let request = network(&format!("{prefix}{i}"));
            manager.call(&Identity::Administrator, request).await.expect("made");
        }
    };
    tokio::join!(create(Arc::clone(&cluster.manager), "a"), create(Arc::clone(&other), "b"));
    let state = cluster.store.load().expect("loaded");
    let made: Vec<&Network> = state.networks.values().collect();
    assert_eq!(made.len(), 82);
    assert_eq!(made.iter().map(|n| n.vni).collect::<HashSet<_>>().len(), 82);
    assert_eq!(made.iter().map(|n| n.subnet).collect::<HashSet<_>>().len(), 82);
    for manager in [&cluster.manager, &other] {
        // Each manager receives the other one's commits by itself.
        while manager.state().revision < state.revision {
            tokio::task::yield_now().await;
        }
        assert_eq!(*manager.state(), state);
    }
}

#[tokio::test]
async fn names_taken_at_the_same_time_go_to_one_of_the_callers() {
    let cluster = Cluster::new();
    let results = futures_util::future::join_all((0..8).map(|_| cluster.network("mynet"))).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    for error in results.into_iter().filter_map(Result::err) {
        assert_eq!(error.code, ErrorCode::Conflict, "{error}");
    }
}

#[tokio::test]
async fn heartbeats_make_a_node_ready_and_are_not_written_down() {
    let cluster = Cluster::new();
    let who = Identity::Node(cluster.node.clone());
    let first: HeartbeatAnswer =
        cluster.call(&who, heartbeat(&cluster.node, 0)).await.expect("an answer");
    assert_eq!(cluster.manager.state().nodes[&cluster.node].state, NodeState::Ready);
    for applied in 1..10 {
        let next: HeartbeatAnswer =
            cluster.call(&who, heartbeat(&cluster.node, applied)).await.expect("an answer");
        assert_eq!(next.revision, first.revision);
    }
    assert_eq!(cluster.store.load().expect("loaded").revision, first.revision);
}

/// Returns the next change of a node between ready and down.
async fn next_state(watch: &mut (impl Stream<Item = WatchEvent> + Unpin)) -> NodeState {
    loop {
        if let Some(WatchEvent::Changes { changes, .. }) = watch.next().await {
            for change in changes {
                if let Change::Put(Object::Node(node)) = change {
                    return node.state;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_silent_node_goes_down_and_comes_back_when_it_is_heard() {
    let cluster = Cluster::with_timeout(100);
    let who = Identity::Node(cluster.node.clone());
    let mut watch = Box::pin(cluster.manager.watch());
    assert!(matches!(watch.next().await, Some(WatchEvent::Snapshot(_))));
    for _ in 0..2 {
        let beat = heartbeat(&cluster.node, cluster.manager.state().revision);
        cluster.manager.call(&who, beat).await.expect("an answer");
        assert_eq!(next_state(&mut watch).await, NodeState::Ready);
        assert_eq!(next_state(&mut watch).await, NodeState::Down);
    }
}

#[tokio::test]
async fn a_cluster_in_a_file_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("cluster.redb");
    let store = RedbStore::create(&path).expect("created");
    let node = Manager::init(&store, init(60_000)).expect("a cluster").node.id;
    let who = Identity::Node(node.clone());
    let manager = Manager::open(Arc::new(store)).expect("a manager");
    manager.call(&who, heartbeat(&node, 0)).await.expect("an answer");
    let request = Request::TokenCreate(TokenCreate { ttl_secs: 60 });
    manager.call(&Identity::Administrator, request).await.expect("a token");
    manager.call(&Identity::Administrator, network("mynet")).await.expect("made");
    let before = manager.state();
    drop(manager);
    // The background tasks release the file when they run next.
    let store = loop {
        match RedbStore::open(&path) {
            Ok(store) => break store,
            Err(StoreError::Locked(_)) => tokio::task::yield_now().await,
            Err(e) => panic!("{e}"),
        }
    };
    let manager = Manager::open(Arc::new(store)).expect("a manager");
    assert_eq!(manager.state(), before);
    let tokens = manager.call(&Identity::Administrator, Request::TokenList {}).await;
    assert_eq!(tokens.expect("a list").as_array().map(Vec::len), Some(1));
    let again = manager.call(&Identity::Administrator, network("mynet")).await;
    refused(again, ErrorCode::Conflict, &["mynet"]);
}

fn sync(revision: Option<u64>, timeout_ms: u64) -> Request {
    Request::Sync(Sync { revision, timeout_ms })
}

#[tokio::test]
async fn sync_waits_for_every_ready_node_and_names_those_that_lag() {
    let cluster = Cluster::new();
    let h2 = join(&cluster, "h2", 11).await;
    join(&cluster, "h3", 12).await;
    let (one, two) = (Identity::Node(cluster.node.clone()), Identity::Node(h2.clone()));
    for (who, node) in [(&one, &cluster.node), (&two, &h2)] {
        cluster.manager.call(who, heartbeat(node, 0)).await.expect("an answer");
    }
    let revision = cluster.manager.state().revision;
    cluster.manager.call(&one, heartbeat(&cluster.node, revision)).await.expect("an answer");
    let answer: SyncAnswer = cluster.admin(sync(None, 0)).await.expect("an answer");
    assert_eq!((answer.revision, answer.lagging), (revision, vec!["h2".to_owned()]));

    let waiting = cluster.admin::<SyncAnswer>(sync(Some(revision), 60_000));
    let applying = async {
        tokio::task::yield_now().await;
        cluster.manager.call(&two, heartbeat(&h2, revision)).await.expect("an answer");
    };
    let (answer, ()) = tokio::join!(waiting, applying);
    assert_eq!(answer.expect("an answer").lagging, Vec::<String>::new());
    let future = cluster.admin::<Value>(sync(Some(revision + 1), 0)).await;
    refused(future, ErrorCode::Invalid, &["no revision"]);
}

#[tokio::test]
async fn sync_does_not_wait_for_a_node_that_goes_down_meanwhile() {
    let cluster = Cluster::with_timeout(100);
    let who = Identity::Node(cluster.node.clone());
    cluster.manager.call(&who, heartbeat(&cluster.node, 0)).await.expect("an answer");
    let answer: SyncAnswer = cluster.admin(sync(None, 600_000)).await.expect("an answer");
    assert_eq!(answer.lagging, Vec::<String>::new());
}

#[tokio::test]
async fn tokens_are_listed_and_removed() {
    let cluster = Cluster::new();
    let token = cluster.token().await.parse::<JoinToken>().expect("a token");
    let listed: Vec<TokenInfo> = cluster.admin(Request::TokenList {}).await.expect("a list");
    assert_eq!(listed.iter().map(|t| &t.id).collect::<Vec<_>>(), [&token.id]);
    let remove = Request::TokenRemove(reference(token.id.as_str()));
    cluster.admin::<TokenInfo>(remove.clone()).await.expect("removed");
    refused(cluster.admin::<TokenInfo>(remove).await, ErrorCode::NotFound, &["token ls"]);
    let listed: Vec<TokenInfo> = cluster.admin(Request::TokenList {}).await.expect("a list");
    assert!(listed.is_empty());
}

#[tokio::test]
async fn the_state_shows_what_was_answered_and_no_secret() {
    let cluster = Cluster::new();
    cluster.token().await;
    let made = cluster.network("mynet").await.expect("made");
    let state: ClusterState = cluster.admin(Request::State {}).await.expect("a state");
    assert_eq!(state.networks[&made.id], made);
    assert_eq!(state, *cluster.manager.state());
    let text = serde_json::to_string(&state).expect("JSON");
    assert!(!text.contains("PRIVATE") && !text.contains("sha256"), "{text}");
}
