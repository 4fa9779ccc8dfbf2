//! The API on the unix socket.

use overlay_common::maps::Lru;

use super::*;
use crate::{
    agent::{serve, testing::port},
    api::{Detach, Leave, Left, LocalContainer, LocalRequest, Reference, Status, Sync, SyncAnswer},
    datapath::{Fill, Tables},
    model::Endpoint,
};

/// A started host with its server and a client.
struct Served {
    agent: Arc<TestAgent>,
    server: serve::server::Server,
    client: LocalClient,
    _tasks: TestTasks,
}

async fn served(test: &TestHost) -> Served {
    let (agent, tasks) = test.start().await;
    let paths = test.paths();
    let server = serve::serve(agent.clone(), &paths.socket()).expect("served");
    Served { agent, server, client: LocalClient::new(&paths), _tasks: tasks }
}

#[tokio::test]
async fn a_container_is_attached_listed_and_detached_through_the_socket() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let served = served(&test).await;
    let client = &served.client;
    let attach = LocalRequest::Attach(test.attach("a", "mynet"));
    let attached: Attached = client.local(attach).await.expect("attached");
    let listed: Vec<LocalContainer> =
        client.local(LocalRequest::Containers {}).await.expect("listed");
    assert_eq!(listed[0].container, attached.container);
    let tables: Tables = client.local(LocalRequest::Tables {}).await.expect("tables");
    let endpoints = tables.state.iter().find(|t| t.name == "endpoints").expect("endpoints");
    assert!(endpoints.rows.iter().any(|row| row.contains(&"a".to_owned())));
    let status: Status = client.local(LocalRequest::Status {}).await.expect("a status");
    assert_eq!((status.name.as_str(), status.entries["links"]), ("h1", 2));
    let flows = Fill { entries: 900, room: 1024, evicted: 37 };
    test.datapath.set_fill(Lru::CtNew, flows);
    let status: Status = client.local(LocalRequest::Status {}).await.expect("a status");
    let told = |map| {
        let row = status.fills.iter().find(|row| row.map == map).expect(map);
        Fill { entries: row.entries, room: row.room, evicted: row.evicted }
    };
    assert_eq!((told("ct_new"), told("conntrack")), (flows, Fill::default()));
    let detach = Detach { container: "a".to_owned(), force: false };
    let removed: Vec<Endpoint> =
        client.local(LocalRequest::Detach(detach)).await.expect("detached");
    assert_eq!(removed.len(), 1);
}

#[tokio::test]
async fn only_root_can_open_the_socket_and_a_stale_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let test = TestHost::first(&world);
    let socket = test.paths().socket();
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a stale socket"));
    let served = served(&test).await;
    let client = &served.client;
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    client.local::<Status>(LocalRequest::Status {}).await.expect("answered");
    served.server.end().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn on_a_managers_host_the_caller_is_the_administrator() {
    let world = World::new();
    let test = TestHost::first(&world);
    let served = served(&test).await;
    let client = &served.client;
    let create = NetworkCreate { name: "mynet".to_owned(), ..NetworkCreate::default() };
    let made: Network = client.call(Request::NetworkCreate(create.clone())).await.expect("made");
    assert_eq!(made.name, "mynet");
    let error = client.call::<Network>(Request::NetworkCreate(create)).await.expect_err("twice");
    assert_eq!(error.code, ErrorCode::Conflict, "the manager's error arrives as it is");
}

#[tokio::test]
async fn elsewhere_the_caller_is_sent_to_a_manager_but_may_look() {
    let world = World::new();
    let node = world.add_node(11);
    let test = TestHost::new(&world, &node);
    let served = served(&test).await;
    let client = &served.client;
    let remove = Request::NetworkRemove(Reference { reference: "mynet".to_owned() });
    let error = client.call::<Network>(remove).await.expect_err("not a manager");
    assert_eq!(error.code, ErrorCode::Forbidden);
    assert!(error.to_string().contains("h1 (172.16.1.10)"), "{error}");
    let state: ClusterState = client.call(Request::State {}).await.expect("the state");
    assert_eq!(state.nodes.len(), 2);
    let sync = Sync { revision: None, timeout_ms: 60_000 };
    let answer: SyncAnswer = client.call(Request::Sync(sync)).await.expect("synced");
    assert!(answer.revision > 0);
}

#[tokio::test]
async fn methods_and_parameters_that_do_not_exist_are_told_apart() {
    let world = World::new();
    let test = TestHost::first(&world);
    let served = served(&test).await;
    let answer = |path: &'static str, body: &'static str| {
        let socket = test.paths().socket();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = tokio::net::UnixStream::connect(socket).await.expect("connected");
            let head = format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.expect("sent");
            stream.write_all(body.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        }
    };
    for (path, body, status, says) in [
        ("/v1/local/status", "", "200", "\"name\":\"h1\""),
        ("/v1/local/nonsense", "{}", "404", "nonsense"),
        ("/v1/nonsense", "{}", "404", "nonsense"),
        ("/elsewhere", "{}", "404", "POST /v1/METHOD"),
        ("/v1/local/attach", "{", "400", "JSON"),
        ("/v1/local/attach", "{\"colour\": 1}", "400", "colour"),
    ] {
        let answer = answer(path, body).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(status) && answer.contains(says), "{path} {body}: {answer}");
    }
    served.server.end().await;
}

#[tokio::test]
async fn leaving_is_refused_while_containers_are_attached() {
    let world = World::new();
    world.network("mynet").await;
    let node = world.add_node(11);
    let test = TestHost::new(&world, &node);
    let served = served(&test).await;
    let (agent, client) = (&served.agent, &served.client);
    attach(agent, test.attach("a", "mynet")).await;
    let leave = LocalRequest::Leave(Leave { force: false });
    let error = client.local::<Left>(leave).await.expect_err("refused");
    assert!(error.code == ErrorCode::Conflict && error.message.contains('a'), "{error}");
    assert_eq!(agent.attachments.list().len(), 1);
}

#[tokio::test]
async fn the_last_manager_leaves_only_by_force() {
    let world = World::new();
    let test = TestHost::first(&world);
    let served = served(&test).await;
    let client = &served.client;
    let leave = LocalRequest::Leave(Leave { force: false });
    let error = client.local::<Left>(leave).await.expect_err("refused");
    assert!(error.to_string().contains("--force"), "{error}");
}

#[tokio::test]
async fn leaving_by_force_leaves_nothing_and_ends_the_daemon() {
    let world = World::new();
    world.network("mynet").await;
    world.service("web", "mynet", &[port(8080, 80)], 60_000).await;
    let node = world.add_node(11);
    let test = TestHost::new(&world, &node);
    let served = served(&test).await;
    let (agent, client) = (&served.agent, &served.client);
    attach(agent, test.backend("w1", "web")).await;
    let leave = LocalRequest::Leave(Leave { force: true });
    let left: Left = client.local(leave).await.expect("left");
    for what in [
        "container w1",
        "node h2 of the cluster",
        "pins",
        "ovl-vxlan",
        "keeps sockets",
        "agent.json",
    ] {
        assert!(left.removed.iter().any(|r| r.contains(what)), "{what}: {:?}", left.removed);
    }
    agent.stopped().await;
    let state = world.manager.state();
    assert!(!state.nodes.contains_key(&node.id) && state.endpoints.is_empty());
    assert_eq!((test.links.vxlan(), test.links.host_link()), (BTreeMap::new(), None));
    assert_eq!(test.datapath.containers(), Vec::<String>::new());
    assert!(!test.paths().state_dir.exists());
}
