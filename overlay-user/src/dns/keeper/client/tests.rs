use std::{
    net::UdpSocket,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::net::{accept, bind, listen, recv, send as send_bytes};

use super::*;
use crate::dns::keeper::testing::Place;

const HERE: NamespaceId = NamespaceId(4, 17);

fn id(name: &str) -> Id {
    Id::from_text(name)
}

fn store(keeper: &Keeper, name: &str) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    keeper.store(&id(name), HERE, &[socket.as_fd()]);
    socket
}

fn has(keeper: &Keeper, name: &str) -> bool {
    !keeper.take(&id(name), HERE).is_empty()
}

#[test]
fn a_keeper_is_started_once_and_serves_the_next_daemon_too() {
    let place = Place::new();
    let first = place.keeper();
    assert!(!has(&first, "c1"));
    store(&first, "c1");
    drop(first);
    let next = place.keeper();
    assert!(has(&next, "c1"));
    next.awake();
    assert_eq!(place.started(), 1);
}

#[test]
fn one_that_died_is_started_again_when_it_is_needed() {
    let place = Place::new();
    let keeper = place.keeper();
    keeper.awake();
    store(&keeper, "c1");
    place.kill();
    store(&keeper, "c2");
    keeper.forget(&id("c1"));
    keeper.retain(&BTreeSet::new());
    assert_eq!(place.started(), 1, "there is nothing that one would have to let go of");
    keeper.awake();
    assert_eq!(place.started(), 2);
    store(&keeper, "c1");
    assert!(has(&keeper, "c1") && !has(&keeper, "c2"));
}

#[test]
fn one_that_cannot_be_started_is_not_tried_for_every_container() {
    let tries = Arc::new(AtomicUsize::new(0));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let counted = Arc::clone(&tries);
    let start = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::other("made to fail by the test"))
    };
    let keeper = Keeper::started_by(dir.path().join("sockets.sock"), Box::new(start));
    for name in ["c1", "c2", "c3"] {
        assert!(!has(&keeper, name));
        store(&keeper, name);
    }
    assert_eq!(tries.load(Ordering::SeqCst), 1);
    let trouble = lock(&keeper.trouble).clone();
    assert!(trouble.is_some_and(|t| t.contains("made to fail")), "the cause is what is told");
}

#[test]
fn sockets_of_unknown_containers_are_let_go_of() {
    let place = Place::new();
    let keeper = place.keeper();
    keeper.awake();
    let names: Vec<String> = (0..100).map(|n| format!("{n:0>25}")).collect();
    let sockets: Vec<_> = names.iter().map(|name| store(&keeper, name)).collect();
    let known: BTreeSet<Id> = [&names[3], &names[97]].into_iter().map(|n| id(n)).collect();
    keeper.retain(&known);
    let left: Vec<_> = names.iter().filter(|name| has(&keeper, name)).collect();
    assert_eq!(left, [&names[3], &names[97]]);
    drop(sockets);
}

#[test]
fn a_keeper_of_another_time_makes_way() {
    let place = Place::new();
    let flags = SocketFlags::CLOEXEC;
    let other = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let other = other.expect("a socket");
    bind(&other, &SocketAddrUnix::new(&place.path).expect("a path")).expect("bound");
    listen(&other, 4).expect("listens");
    let answering = std::thread::spawn(move || {
        // The first connection only checks that a process listens.
        let _looking = accept(&other).expect("accepted");
        let connection = accept(&other).expect("accepted");
        recv(&connection, &mut [0; 128][..], RecvFlags::empty()).expect("a request");
        send_bytes(&connection, &[99, 1, 2, 3], SendFlags::empty()).expect("sent");
    });
    let keeper = place.keeper();
    assert!(!has(&keeper, "c1"));
    let trouble = lock(&keeper.trouble).clone();
    assert!(trouble.is_some_and(|t| t.contains("version 99")), "it is said why");
    answering.join().expect("asked");
    keeper.awake();
    store(&keeper, "c1");
    assert!(has(&keeper, "c1"));
    assert_eq!(place.started(), 1);
}

#[test]
fn after_its_end_no_other_is_started() {
    let place = Place::new();
    let keeper = place.keeper();
    assert!(keeper.end().expect("nothing to end").is_none());
    let keeper = place.keeper();
    keeper.awake();
    store(&keeper, "c1");
    assert_eq!(keeper.end().expect("ended"), Some(std::process::id()));
    assert!(!place.path.exists(), "it has removed its socket");
    assert!(!has(&keeper, "c1"));
    assert_eq!(place.started(), 1);
}
