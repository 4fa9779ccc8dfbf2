use std::{net::UdpSocket, os::fd::BorrowedFd, os::unix::fs::PermissionsExt as _, path::PathBuf};

use rustix::net::{connect, send as send_bytes};
use tempfile::TempDir;

use super::*;
use crate::dns::keeper::{
    KeeperError, client::Connection, protocol::VERSION, testing::DESCRIPTORS,
};

const HERE: NamespaceId = NamespaceId(4, 17);
const ELSEWHERE: NamespaceId = NamespaceId(4, 18);

/// A keeper in a thread. It ends with the test.
struct Running {
    _dir: TempDir,
    path: PathBuf,
}

impl Running {
    fn with_descriptors(descriptors: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sockets.sock");
        let mut server = Server::listen(&path, descriptors).expect("listens");
        std::thread::spawn(move || server.run());
        Self { _dir: dir, path }
    }

    fn start() -> Self {
        Self::with_descriptors(DESCRIPTORS)
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.path).expect("connected")
    }

    fn ask(&self, request: &Request) -> Reply {
        self.connect().ask(request, &[]).expect("a reply").0
    }

    fn store(&self, name: &str, namespace: NamespaceId, socket: &UdpSocket) -> Reply {
        self.try_store(name, namespace, &[socket.as_fd()]).expect("a reply")
    }

    fn try_store(
        &self,
        name: &str,
        namespace: NamespaceId,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<Reply, KeeperError> {
        let store = Request::Store { name: name.to_owned(), namespace };
        self.connect().ask(&store, sockets).map(|(reply, _)| reply)
    }

    fn take(&self, name: &str, namespace: NamespaceId) -> Option<UdpSocket> {
        let take = Request::Take { name: name.to_owned(), namespace };
        match self.connect().ask(&take, &[]).expect("a reply") {
            (Reply::Sockets {}, mut sockets) => {
                let socket = sockets.pop().expect("a socket");
                assert!(sockets.is_empty(), "one was stored");
                Some(socket.into())
            }
            (Reply::Unknown {}, _) => None,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, after: &str) -> Vec<String> {
        match self.ask(&Request::List { after: after.to_owned() }) {
            Reply::Names { names } => names,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(connection) = Connection::open(&self.path) {
            drop(connection.ask(&Request::Quit {}, &[]));
        }
    }
}

fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("bound")
}

fn drop_request(name: &str) -> Request {
    Request::Drop { name: name.to_owned() }
}

#[test]
fn what_is_stored_outlives_its_owner_and_is_closed_when_dropped() {
    let keeper = Running::start();
    let socket = udp();
    let address = socket.local_addr().expect("bound");
    assert_eq!(keeper.store("c1", HERE, &socket), Reply::Done {});
    drop(socket);
    let client = udp();
    client.connect(address).expect("connected");
    client.send(b"query").expect("sent");
    let socket = keeper.take("c1", HERE).expect("kept");
    let mut buffer = [0; 16];
    assert_eq!(socket.recv(&mut buffer).expect("received"), 5, "it waited in the queue");
    drop(socket);
    let again = keeper.take("c1", HERE).expect("it keeps its own");
    assert_eq!(again.local_addr().expect("bound"), address);
    drop(again);
    assert_eq!(keeper.ask(&drop_request("c1")), Reply::Done {});
    assert!(keeper.take("c1", HERE).is_none());
    assert_eq!(keeper.ask(&drop_request("c1")), Reply::Done {}, "nothing is no error");
    UdpSocket::bind(address).expect("the address is free: no copy is left");
}

#[test]
fn sockets_of_another_namespace_are_not_given() {
    let keeper = Running::start();
    keeper.store("c1", ELSEWHERE, &udp());
    assert!(keeper.take("c1", HERE).is_none());
    assert!(keeper.take("c2", ELSEWHERE).is_none());
    let new = udp();
    let address = new.local_addr().expect("bound");
    keeper.store("c1", HERE, &new);
    let kept = keeper.take("c1", HERE).expect("replaced");
    assert_eq!(kept.local_addr().expect("bound"), address);
    assert!(keeper.take("c1", ELSEWHERE).is_none(), "the old ones are gone");
    assert_eq!(keeper.names(""), ["c1"]);
}

#[test]
fn nonsense_is_refused_and_harms_nobody_else() {
    let keeper = Running::start();
    keeper.store("c1", HERE, &udp());
    let v = VERSION;
    let long = vec![v; MAX_PACKET + 1];
    let packets: &[&[u8]] = &[
        b"",
        &[v],
        &[v + 1, b'{', b'}'],
        &[0],
        &long,
        &[&[v][..], b"{\"quit\":"].concat(),
        &[&[v][..], b"{\"quit\":{\"really\":true}}"].concat(),
        &[&[v][..], b"{\"explode\":{}}"].concat(),
        &[&[v][..], b"\xff\xfe"].concat(),
        &[&[v][..], b"{\"take\":{\"name\":7,\"namespace\":[1,2]}}"].concat(),
    ];
    for packet in packets {
        let connection = raw(&keeper.path);
        send_bytes(&connection, packet, SendFlags::empty()).expect("sent");
        match receive::<Reply>(&connection, RecvFlags::empty()) {
            Ok((Reply::Refused { .. }, _)) => {}
            Err(ProtocolError::Closed) => assert!(packet.is_empty(), "{packet:?}"),
            other => panic!("{packet:?}: {other:?}"),
        }
        let end = receive::<Reply>(&connection, RecvFlags::empty());
        assert!(matches!(end, Err(ProtocolError::Closed)), "{packet:?}: {end:?}");
    }
    assert!(keeper.take("c1", HERE).is_some(), "it goes on");
}

#[test]
fn a_store_without_sockets_or_a_usable_name_is_refused_and_may_be_repeated() {
    let keeper = Running::start();
    let socket = udp();
    let long = "n".repeat(MAX_NAME + 1);
    let refused = keeper.try_store("c1", HERE, &[]);
    assert!(matches!(&refused, Err(KeeperError::Refused(why)) if why.contains("no sockets")));
    for name in ["", &long] {
        let refused = keeper.try_store(name, HERE, &[socket.as_fd()]);
        assert!(matches!(refused, Err(KeeperError::Refused(_))), "{refused:?}");
    }
    assert_eq!(keeper.names(""), Vec::<String>::new());
    assert_eq!(keeper.store("c1", HERE, &socket), Reply::Done {});
}

#[test]
fn silent_connections_keep_nobody_out() {
    let keeper = Running::start();
    let _silent: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| raw(&keeper.path)).collect();
    assert_eq!(keeper.store("c1", HERE, &udp()), Reply::Done {});
    assert!(keeper.take("c1", HERE).is_some());
}

#[test]
fn a_full_keeper_says_so_and_has_room_again_after_a_drop() {
    let keeper = Running::with_descriptors(RESERVED + 2);
    let (first, second) = (udp(), udp());
    keeper.store("c1", HERE, &first);
    keeper.store("c2", HERE, &second);
    let full = keeper.try_store("c3", HERE, &[first.as_fd()]);
    assert!(matches!(&full, Err(KeeperError::Refused(why)) if why.contains("RLIMIT_NOFILE")));
    assert_eq!(keeper.store("c2", HERE, &first), Reply::Done {}, "in place of another");
    keeper.ask(&drop_request("c1"));
    assert_eq!(keeper.store("c3", HERE, &first), Reply::Done {});
    assert_eq!(keeper.names(""), ["c2", "c3"]);
}

#[test]
fn more_names_than_a_packet_holds_are_listed_one_packet_after_the_other() {
    let keeper = Running::start();
    let socket = udp();
    let names: Vec<String> = (0..100).map(|n| format!("{n:0>25}")).collect();
    for name in &names {
        keeper.store(name, HERE, &socket);
    }
    let (mut listed, mut packets) = (Vec::new(), 0);
    loop {
        let more = keeper.names(listed.last().map_or("", String::as_str));
        if more.is_empty() {
            break;
        }
        packets += 1;
        listed.extend(more);
    }
    assert_eq!(listed, names);
    assert!(packets > 1);
    keeper.store(&"\u{1}".repeat(MAX_NAME), HERE, &socket);
    assert_eq!(keeper.names("").len(), 1 + (MAX_PACKET - 64 - 6 * MAX_NAME - 3) / (6 * 25 + 3));
}

#[test]
fn its_socket_is_for_one_user_and_replaces_that_of_a_killed_keeper() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("sockets.sock");
    let killed = Server::listen(&path, DESCRIPTORS).expect("listens");
    assert!(killed.is_reachable());
    let next = Server::listen(&path, DESCRIPTORS).expect("listens in its place");
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(next.is_reachable());
    assert!(!killed.is_reachable(), "a keeper without its file ends");
    std::fs::remove_file(&path).expect("removed");
    assert!(!next.is_reachable());
}

#[test]
fn only_root_and_the_keepers_own_user_may_ask() {
    assert!(may_ask(0, 1000) && may_ask(1000, 1000));
    assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
}

fn raw(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let socket = socket.expect("a socket");
    connect(&socket, &SocketAddrUnix::new(path).expect("a path")).expect("connected");
    socket
}
