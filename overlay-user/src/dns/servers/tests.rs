use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use super::*;
use crate::{
    dns::{
        ADDRESS, PORT, forward,
        keeper::testing::Place,
        testing::{
            Cluster, TestNamespace, addresses, bytes, decoded, id, query, upstream, upstream_reply,
        },
    },
    model::{Availability, NodeState},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn cluster() -> Cluster {
    Cluster::default()
        .node("n1", NodeState::Ready, Availability::Active)
        .network("mynet", "10.0.1.0/24")
        .service("hello", "mynet", Some("10.0.1.2"))
        .endpoint("client", "mynet", "n1", "10.0.1.10")
        .endpoint("second", "mynet", "n1", "10.0.1.11")
}

fn view(cluster: Cluster, upstreams: Vec<SocketAddr>) -> Arc<ArcSwap<DnsView>> {
    let view = DnsView { state: Arc::new(cluster.state), upstreams };
    Arc::new(ArcSwap::from_pointee(view))
}

fn servers() -> DnsServers {
    DnsServers::new(view(cluster(), vec![]))
}

/// Sends a query as a program in the namespace does. Returns `None` if no server listens there.
async fn ask(container: &Arc<TestNamespace>, message: Message) -> Option<Message> {
    let container = Arc::clone(container);
    let asked = move || {
        container.run(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
            socket.connect((ADDRESS, PORT)).expect("connected");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
            let mut buffer = [0; 4096];
            // Repeats the query like a resolver, because a query to a server that is about to end
            // is lost.
            for _ in 0..60 {
                let exchange = socket.send(&bytes(&message)).and_then(|_| socket.recv(&mut buffer));
                match exchange {
                    Ok(length) => return Some(decoded(&buffer[..length])),
                    Err(e) if e.kind() == ErrorKind::ConnectionRefused => return None,
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            panic!("no answer to 60 queries")
        })
    };
    tokio::task::spawn_blocking(asked).await.expect("asked")
}

async fn ask_tcp(container: &Arc<TestNamespace>, message: Message) -> Message {
    use std::io::{Read as _, Write as _};
    let container = Arc::clone(container);
    let asked = move || {
        container.run(move || {
            let mut stream = std::net::TcpStream::connect((ADDRESS, PORT)).expect("connected");
            stream.write_all(&forward::framed(&bytes(&message)).expect("framed")).expect("sent");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply).expect("a reply");
            decoded(&reply)
        })
    };
    tokio::task::spawn_blocking(asked).await.expect("asked")
}

async fn hello(container: &Arc<TestNamespace>) -> Option<Vec<Ipv4Addr>> {
    ask(container, query("hello.", RecordType::A)).await.map(|r| addresses(&r))
}

/// Makes a namespace with `lo` up. Returns `None`, with a message, if the user is not root.
fn namespace() -> Option<Arc<TestNamespace>> {
    let namespace = TestNamespace::new()?;
    namespace.bring_lo_up();
    Some(Arc::new(namespace))
}

/// Waits until no server listens in the namespace any more.
async fn until_closed(container: &Arc<TestNamespace>) {
    while hello(container).await.is_some() {}
}

#[tokio::test]
async fn a_container_asks_over_udp_and_tcp_and_the_upstreams_are_asked_from_outside() {
    let Some(container) = namespace() else { return };
    // The upstream listens in the test's namespace, not in the container's.
    let upstream = upstream(|q| vec![bytes(&upstream_reply(q, Ok(&[OUTSIDE])))]).await;
    let servers = DnsServers::new(view(cluster(), vec![upstream]));
    servers.ensure(&id("client"), container.path()).await.expect("listens");
    assert_eq!(hello(&container).await.expect("a reply"), [VIP]);
    let other = ask(&container, query("example.org.", RecordType::A)).await.expect("a reply");
    assert_eq!(addresses(&other), [OUTSIDE]);
    let over_tcp = ask_tcp(&container, query("hello.mynet.", RecordType::A)).await;
    assert_eq!(addresses(&over_tcp), [VIP]);
    let other = ask_tcp(&container, query("example.org.", RecordType::A)).await;
    assert_eq!(addresses(&other), [OUTSIDE]);
}

#[tokio::test]
async fn ensure_may_be_called_again_and_remove_ends_the_server() {
    let Some(container) = namespace() else { return };
    let servers = servers();
    for _ in 0..3 {
        servers.ensure(&id("client"), container.path()).await.expect("listens");
    }
    assert_eq!(hello(&container).await.expect("a reply"), [VIP]);
    servers.remove(&id("client"));
    servers.remove(&id("client"));
    until_closed(&container).await;
    servers.ensure(&id("client"), container.path()).await.expect("listens again");
    assert_eq!(hello(&container).await.expect("a reply"), [VIP]);
}

#[tokio::test]
async fn another_namespace_of_the_same_container_replaces_the_first() {
    let (Some(first), Some(second)) = (namespace(), namespace()) else { return };
    let servers = servers();
    servers.ensure(&id("client"), first.path()).await.expect("listens");
    servers.ensure(&id("client"), second.path()).await.expect("listens");
    assert_eq!(hello(&second).await.expect("a reply"), [VIP]);
    until_closed(&first).await;
}

#[tokio::test]
async fn two_containers_in_one_namespace_are_refused() {
    let Some(container) = namespace() else { return };
    let servers = servers();
    servers.ensure(&id("client"), container.path()).await.expect("listens");
    let error = servers.ensure(&id("second"), container.path()).await.expect_err("shared");
    assert!(matches!(&error, DnsError::Shared { other, .. } if *other == id("client")));
    assert_eq!(hello(&container).await.expect("a reply"), [VIP], "the first goes on");
}

#[tokio::test]
async fn a_failed_ensure_leaves_nothing_and_may_be_repeated() {
    let Some(container) = TestNamespace::new().map(Arc::new) else { return };
    let servers = servers();
    let error = servers.ensure(&id("client"), container.path()).await.expect_err("lo is down");
    assert!(matches!(error, DnsError::LoopbackDown { .. }), "{error:?}");
    assert_eq!(format!("{servers:?}"), "{}");
    container.bring_lo_up();
    servers.ensure(&id("client"), container.path()).await.expect("listens");
    assert_eq!(hello(&container).await.expect("a reply"), [VIP]);
}

#[tokio::test]
async fn servers_made_anew_bind_while_those_of_the_old_agent_still_end() {
    let Some(container) = namespace() else { return };
    let old = servers();
    old.ensure(&id("client"), container.path()).await.expect("listens");
    let new = servers();
    new.ensure(&id("client"), container.path()).await.expect("listens beside the old one");
    drop(old);
    assert_eq!(hello(&container).await.expect("a reply"), [VIP]);
}

/// Returns a daemon's servers on a host with a keeper.
fn kept_servers(place: &Place) -> DnsServers {
    servers().kept_by(place.keeper())
}

#[tokio::test]
async fn what_is_asked_while_no_server_runs_is_answered_by_the_next_one() {
    let Some(container) = namespace() else { return };
    let place = Place::new();
    let old = kept_servers(&place);
    old.ensure(&id("client"), container.path()).await.expect("listens");
    assert_eq!(hello(&container).await.expect("a reply"), [VIP]);
    stop(old, "client").await;
    // These are sent before the next server is made, so they wait for it.
    let (udp, mut tcp) = container.run(|| {
        use std::io::Write as _;
        let message = bytes(&query("hello.", RecordType::A));
        let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
        udp.send_to(&message, (ADDRESS, PORT)).expect("sent");
        let mut tcp = std::net::TcpStream::connect((ADDRESS, PORT)).expect("connected");
        tcp.write_all(&forward::framed(&message).expect("framed")).expect("sent");
        (udp, tcp)
    });
    let new = kept_servers(&place);
    new.ensure(&id("client"), container.path()).await.expect("takes over");
    let replies = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut buffer = [0; 4096];
        let length = udp.recv(&mut buffer).expect("a reply");
        let over_udp = addresses(&decoded(&buffer[..length]));
        let mut length = [0; 2];
        tcp.read_exact(&mut length).expect("a length");
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        tcp.read_exact(&mut reply).expect("a reply");
        (over_udp, addresses(&decoded(&reply)))
    });
    assert_eq!(replies.await.expect("asked"), (vec![VIP], vec![VIP]));
    assert_eq!(place.started(), 1);
    new.remove(&id("client"));
    until_closed(&container).await;
}

#[tokio::test]
async fn what_has_waited_is_answered_from_the_state_that_comes_after_the_start() {
    let Some(container) = namespace() else { return };
    let view = Arc::new(ArcSwap::from_pointee(DnsView::default()));
    let servers = DnsServers::new(Arc::clone(&view)).waiting();
    servers.ensure(&id("client"), container.path()).await.expect("listens");
    let udp = container.run(|| {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let message = bytes(&query("hello.", RecordType::A));
        udp.send_to(&message, (ADDRESS, PORT)).expect("sent");
        udp
    });
    view.store(Arc::new(DnsView { state: Arc::new(cluster().state), upstreams: vec![] }));
    servers.answer();
    let reply = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 4096];
        let length = udp.recv(&mut buffer).expect("a reply");
        addresses(&decoded(&buffer[..length]))
    });
    assert_eq!(reply.await.expect("asked"), [VIP]);
}

#[tokio::test]
async fn what_is_kept_of_containers_that_are_gone_is_let_go_of() {
    let (Some(gone), Some(stays)) = (namespace(), namespace()) else { return };
    let place = Place::new();
    let old = kept_servers(&place);
    for (name, container) in [("client", &gone), ("second", &stays)] {
        old.ensure(&id(name), container.path()).await.expect("listens");
    }
    stop(old, "client").await;
    let new = kept_servers(&place);
    new.retain(BTreeSet::from([id("second")])).await;
    until_closed(&gone).await;
    new.ensure(&id("second"), stays.path()).await.expect("takes over");
    assert_eq!(hello(&stays).await.expect("a reply"), [VIP]);
}

#[tokio::test]
async fn a_container_in_another_namespace_than_before_gets_new_sockets() {
    let (Some(before), Some(now)) = (namespace(), namespace()) else { return };
    let place = Place::new();
    let old = kept_servers(&place);
    old.ensure(&id("client"), before.path()).await.expect("listens");
    stop(old, "client").await;
    let new = kept_servers(&place);
    new.ensure(&id("client"), now.path()).await.expect("listens");
    assert_eq!(hello(&now).await.expect("a reply"), [VIP]);
    until_closed(&before).await;
}

#[tokio::test]
async fn a_keeper_that_died_is_given_the_sockets_again() {
    let Some(container) = namespace() else { return };
    let place = Place::new();
    let old = kept_servers(&place);
    old.ensure(&id("client"), container.path()).await.expect("listens");
    place.kill();
    assert_eq!(hello(&container).await.expect("a reply"), [VIP], "names are served all the same");
    old.ensure(&id("client"), container.path()).await.expect("listens already");
    assert_eq!(place.started(), 2);
    let keeper = place.keeper();
    let namespace = Namespace::open(container.path()).expect("opened");
    assert_eq!(keeper.take(&id("client"), namespace.id).len(), 2);
}

/// Ends servers as the end of their process does, without any notice.
async fn stop(servers: DnsServers, container: &str) {
    let task = {
        let servers = lock(&servers.servers);
        let running = servers[&id(container)].running.as_ref().expect("it listens");
        running.task.clone()
    };
    drop(servers);
    while !task.is_finished() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_container_sees_its_own_networks() {
    let (Some(first), Some(second)) = (namespace(), namespace()) else { return };
    let cluster = cluster().network("other", "10.0.2.0/24").edit("second@mynet", |e| {
        e.network = id("other");
        e.ip = Ipv4Addr::new(10, 0, 2, 11);
    });
    let servers = DnsServers::new(view(cluster, vec![]));
    servers.ensure(&id("client"), first.path()).await.expect("listens");
    assert_eq!(hello(&first).await.expect("a reply"), [VIP]);
    servers.ensure(&id("second"), second.path()).await.expect("listens");
    let reply = ask(&second, query("hello.", RecordType::A)).await.expect("a reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "forwarded, to nobody");
    let own = ask(&second, query("second.", RecordType::A)).await.expect("a reply");
    assert_eq!(addresses(&own), [Ipv4Addr::new(10, 0, 2, 11)]);
}

#[test]
fn a_new_view_counts_from_the_next_question_on_and_the_old_state_is_let_go() {
    let view = view(cluster(), vec![]);
    let directories = Directories::new(Arc::clone(&view));
    directories.start_serving(&id("client"));
    let first = directories.current();
    assert!(Arc::ptr_eq(&first, &directories.current()), "built once per state");
    let old = Arc::downgrade(&view.load().state);
    let state = Arc::new(cluster().endpoint("new", "mynet", "n1", "10.0.1.20").state);
    view.store(Arc::new(DnsView { state, upstreams: vec![] }));
    assert!(old.upgrade().is_none());
    let second = directories.current();
    assert!(!Arc::ptr_eq(&first, &second));
    directories.start_serving(&id("new"));
    assert!(!Arc::ptr_eq(&second, &directories.current()), "and when a container is added");
}
