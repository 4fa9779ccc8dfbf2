//! The server with real connections on the loopback interface.

use std::{net::SocketAddr, sync::Arc};

use futures_util::StreamExt as _;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Cluster, beat, endpoint, heartbeat, loopback, network, node, refused};
use crate::{
    api::{ErrorCode, NodeAddresses, NodeRemove, Request, SyncAnswer},
    manager::{Controller, RemoteManager, ServerHandle, join},
    model::{ClusterState, Endpoint, Id, Node, NodeState, WatchEvent},
    pki::{JoinToken, MANAGER_NAME, NodePki, pinned_client_config},
};

fn remote(server: &ServerHandle, pki: &NodePki) -> RemoteManager {
    RemoteManager::new(vec![server.addr], pki).expect("a client")
}

#[tokio::test]
async fn a_node_joins_calls_and_watches() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (joined, pki) = cluster.join(&server, "h2", 11).await;
    assert_eq!(pki.node().expect("a node"), joined.node.id);
    assert_eq!((joined.node.name.as_str(), joined.data_path_port), ("h2", 4789));
    assert_eq!(cluster.manager.state().nodes[&joined.node.id], joined.node);

    let controller = Controller::Remote(remote(&server, &pki));
    let mut watch = controller.watch().await.expect("a stream");
    let Some(Ok(WatchEvent::Snapshot(snapshot))) = watch.next().await else { panic!("a snapshot") };
    assert_eq!(snapshot, *cluster.manager.state());
    cluster.network("mynet").await.expect("made");
    let made: Vec<Endpoint> =
        controller.call(endpoint(&joined.node.id, "c1", "mynet")).await.expect("made");
    let mut state = snapshot;
    while state.endpoints.is_empty() {
        match watch.next().await {
            Some(Ok(WatchEvent::Changes { changes, .. })) => {
                changes.into_iter().for_each(|change| state.apply(change));
            }
            Some(Ok(WatchEvent::Alive { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(state.endpoints[&made[0].id], made[0]);
    let seen: ClusterState = controller.call(Request::State {}).await.expect("a state");
    assert_eq!(seen, *cluster.manager.state());
}

#[tokio::test]
async fn heartbeats_over_the_network_make_a_node_ready_and_let_sync_return() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (joined, pki) = cluster.join(&server, "h2", 11).await;
    let remote = remote(&server, &pki);
    let answer = beat(&remote, &joined.node.id, 0).await;
    assert_eq!(cluster.manager.state().nodes[&joined.node.id].state, NodeState::Ready);
    beat(&remote, &joined.node.id, answer.revision).await;
    let sync = crate::api::Sync { revision: Some(answer.revision), timeout_ms: 60_000 };
    let answer: SyncAnswer = remote.call(Request::Sync(sync)).await.expect("an answer");
    assert!(answer.lagging.is_empty());
}

#[tokio::test]
async fn a_node_may_not_act_for_another_one_or_administer() {
    let cluster = Cluster::new();
    cluster.network("mynet").await.expect("made");
    let server = cluster.serve().await;
    let (_, pki) = cluster.join(&server, "h2", 11).await;
    let (h3, _) = cluster.join(&server, "h3", 12).await;
    let remote = remote(&server, &pki);
    for other in [&cluster.node, &h3.node.id] {
        let result = remote.call::<Vec<Endpoint>>(endpoint(other, "c1", "mynet")).await;
        refused(result, ErrorCode::Forbidden, &["may not act for node"]);
        let result = remote.call::<serde_json::Value>(heartbeat(other, 1)).await;
        refused(result, ErrorCode::Forbidden, &["may not act for node"]);
        let addresses6 = vec!["2001:db8::1".parse().expect("an address")];
        let addresses = NodeAddresses { node: other.clone(), addresses6 };
        let result = remote.call::<Node>(Request::NodeAddresses(addresses)).await;
        refused(result, ErrorCode::Forbidden, &["may not act for node"]);
        let remove = NodeRemove { reference: other.to_string(), force: true };
        let result = remote.call::<Node>(Request::NodeRemove(remove)).await;
        refused(result, ErrorCode::Forbidden, &["may not act for node"]);
    }
    let result = remote.call::<serde_json::Value>(network("evil")).await;
    refused(result, ErrorCode::Forbidden, &["manager's host"]);
    assert!(cluster.manager.state().endpoints.is_empty());
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_by_either_side() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (server, other) = (ours.serve().await, theirs.serve().await);
    let (_, foreign) = theirs.join(&other, "h2", 11).await;
    // The client fails first: the manager is of another cluster.
    let result = remote(&server, &foreign).call::<ClusterState>(Request::State {}).await;
    refused(result, ErrorCode::Unauthenticated, &["no manager of this cluster"]);
    // The manager rejects a client that trusts our CA but shows a foreign certificate.
    let mixed = NodePki { ca_pem: ours.pki.ca_pem.clone(), ..foreign };
    let remote = remote(&server, &mixed);
    let result = remote.call::<ClusterState>(Request::State {}).await;
    refused(result, ErrorCode::Unauthenticated, &["refused this node's certificate"]);
    let Err(error) = remote.watch().await else { panic!("must be refused") };
    assert_eq!(error.code, ErrorCode::Unauthenticated, "{error}");
}

#[tokio::test]
async fn an_agents_certificate_does_not_make_a_manager() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (_, agent) = cluster.join(&server, "h2", 11).await;
    let (_, victim) = cluster.join(&server, "h3", 12).await;
    let impostor = cluster.manager.serve(loopback(), &agent).await.expect("a server");
    let result = remote(&impostor, &victim).call::<ClusterState>(Request::State {}).await;
    refused(result, ErrorCode::Unauthenticated, &["no manager of this cluster"]);
    let token = cluster.token().await;
    let result = join(impostor.addr, &token, node("h4", 13)).await;
    refused(result, ErrorCode::Unauthenticated, &["no manager of this cluster"]);
}

#[tokio::test]
async fn joining_needs_a_token_of_this_cluster() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let server = cluster.serve().await;
    let try_join = async |token: String| join(server.addr, &token, node("h2", 11)).await.map(drop);
    let good: JoinToken = cluster.token().await.parse().expect("a token");

    let foreign = try_join(other.token().await).await;
    refused(foreign, ErrorCode::Unauthenticated, &["another digest", "overlay token create"]);
    let wrong = JoinToken { secret: Id::random().to_string(), ..good.clone() };
    let wrong = try_join(wrong.to_string()).await;
    refused(wrong, ErrorCode::Unauthenticated, &["wrong", "overlay token create"]);
    let cut = good.to_string();
    let malformed = try_join(cut[..cut.len() - 3].to_owned()).await;
    refused(malformed, ErrorCode::Invalid, &["no join token", "overlay token create"]);
    assert_eq!(cluster.manager.state().nodes.len(), 1);

    try_join(good.to_string()).await.expect("the good one");
    let again = try_join(good.to_string()).await;
    again.expect("silent so far, so its host was set up anew");
    assert_eq!(cluster.manager.state().nodes.len(), 2);
}

#[tokio::test]
async fn a_removed_node_hears_no_more_and_is_told_why() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (_, pki) = cluster.join(&server, "h2", 11).await;
    let remote = remote(&server, &pki);
    let mut watch = remote.watch().await.expect("a stream");
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Snapshot(_)))));
    let remove = NodeRemove { reference: "h2".to_owned(), force: true };
    cluster.admin::<Node>(Request::NodeRemove(remove)).await.expect("removed");
    while let Some(Ok(event)) = watch.next().await {
        assert!(matches!(event, WatchEvent::Alive { .. }), "{event:?}");
    }
    let result = remote.call::<ClusterState>(Request::State {}).await;
    refused(result, ErrorCode::Forbidden, &["was removed"]);
    let Err(error) = remote.watch().await else { panic!("must be refused") };
    assert_eq!(error.code, ErrorCode::Forbidden);
}

#[tokio::test]
async fn a_node_removes_itself() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (joined, pki) = cluster.join(&server, "h2", 11).await;
    let remote = remote(&server, &pki);
    beat(&remote, &joined.node.id, 0).await;
    let remove = NodeRemove { reference: joined.node.id.to_string(), force: false };
    let removed: Node = remote.call(Request::NodeRemove(remove)).await.expect("removed");
    assert_eq!(removed.id, joined.node.id);
    assert_eq!(cluster.manager.state().nodes.len(), 1);
}

#[tokio::test]
async fn a_client_goes_to_the_next_manager_when_one_is_gone() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.serve().await, cluster.serve().await);
    let (joined, pki) = cluster.join(&first, "h2", 11).await;
    let remote = RemoteManager::new(vec![first.addr, second.addr], &pki).expect("a client");
    beat(&remote, &joined.node.id, 0).await;
    assert_eq!(remote.current(), Some(first.addr));
    let mut watch = remote.watch().await.expect("a stream");
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Snapshot(_)))));

    let gone = first.addr;
    drop(first);
    while let Some(Ok(_)) = watch.next().await {}
    beat(&remote, &joined.node.id, 0).await;
    assert_eq!(remote.current(), Some(second.addr));
    let mut watch = remote.watch().await.expect("a stream from the other one");
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Snapshot(_)))));

    let last = second.addr;
    drop(second);
    let result = remote.call::<ClusterState>(Request::State {}).await;
    let (gone, last) = (gone.to_string(), last.to_string());
    refused(result, ErrorCode::Unavailable, &["no manager answers", &gone, &last, "TCP port"]);
}

#[tokio::test]
async fn a_port_in_use_is_said_to_be() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let again = cluster.manager.serve(server.addr, &cluster.pki).await;
    refused(again, ErrorCode::Conflict, &["another program", "--listen-port"]);
}

/// Opens a TLS connection without a certificate.
async fn stranger(cluster: &Cluster, server: SocketAddr) -> TlsStream<TcpStream> {
    let digest = cluster.token().await.parse::<JoinToken>().expect("a token").ca_digest;
    let connector = TlsConnector::from(pinned_client_config(&digest).expect("a configuration"));
    let stream = TcpStream::connect(server).await.expect("connected");
    let name = ServerName::try_from(MANAGER_NAME).expect("a name");
    connector.connect(name, stream).await.expect("a handshake")
}

async fn raw(cluster: &Cluster, server: SocketAddr, request: &[u8]) -> String {
    let mut stream = stranger(cluster, server).await;
    // The server may reject the request and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(method: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/{method} HTTP/1.1\r\nhost: m\r\nconnection: close\r\ncontent-length: {length}\
         \r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn requests_that_are_not_right_are_answered_with_the_reason() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let huge = format!("\"{}\"", "x".repeat(1024 * 1024));
    let watch = b"GET /v1/watch HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n".to_vec();
    let nothing = b"GET /v2 HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n".to_vec();
    let wrong_verb = b"GET /v1/state HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n".to_vec();
    for (request, status, why) in [
        (post("state", ""), "401", "overlay join"),
        (post("state", "{\"x\": 1}"), "400", "parameters of state"),
        (post("join", "{"), "400", "no JSON"),
        (post("join", "{\"secret\": 3}"), "400", "parameters of join"),
        (post("explode", "{}"), "404", "explode"),
        (post("join", &huge), "400", "larger than"),
        (watch, "401", "certificate"),
        (nothing, "404", "no such call"),
        (wrong_verb, "404", "no such call"),
        (b"NONSENSE\r\n\r\n".to_vec(), "400", ""),
    ] {
        let answer = raw(&cluster, server.addr, &request).await;
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.contains(status) && answer.contains(why), "{status} {why}: {answer}");
    }
    let mut headers = b"POST /v1/state HTTP/1.1\r\nhost: m\r\n".to_vec();
    headers.extend(std::iter::repeat_n(b"x: y\r\n", 100).flatten());
    headers.extend_from_slice(b"\r\n");
    assert!(raw(&cluster, server.addr, &headers).await.contains(" 431 "));
    let mut long = b"POST /v1/state HTTP/1.1\r\nx: ".to_vec();
    long.resize(200 * 1024, b'y');
    assert!(raw(&cluster, server.addr, &long).await.contains(" 431 "));
}

#[tokio::test]
async fn hostile_clients_do_not_keep_others_from_being_served() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (joined, pki) = cluster.join(&server, "h2", 11).await;
    let mut hostile: Vec<TcpStream> = vec![];
    for i in 0..200 {
        let mut stream = TcpStream::connect(server.addr).await.expect("connected");
        if i % 2 == 0 {
            // The start of a TLS record that never completes.
            let _ = stream.write_all(&[0x16, 0x03, 0x01, 0xff, 0xff]).await;
        }
        hostile.push(stream);
    }
    let mut silent = stranger(&cluster, server.addr).await;
    silent.write_all(b"POST /v1/join HTTP/1.1\r\n").await.expect("the beginning of a request");
    let remote = remote(&server, &pki);
    beat(&remote, &joined.node.id, 0).await;
    assert!(remote.watch().await.is_ok());
    cluster.join(&server, "h3", 12).await;
    drop(hostile);
}

#[tokio::test]
async fn a_stopped_server_ends_its_connections() {
    let cluster = Cluster::new();
    let server = cluster.serve().await;
    let (_, pki) = cluster.join(&server, "h2", 11).await;
    let mut watch = remote(&server, &pki).watch().await.expect("a stream");
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Snapshot(_)))));
    let manager = Arc::downgrade(&cluster.manager);
    drop(server);
    while let Some(Ok(_)) = watch.next().await {}
    drop(cluster);
    while manager.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}
