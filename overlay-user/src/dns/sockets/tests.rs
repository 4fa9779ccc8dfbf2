use super::*;
use crate::dns::testing::TestNamespace;

#[tokio::test]
async fn a_missing_namespace_is_named_and_explained() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("gone");
    let error = Namespace::open(&path).expect_err("no such file");
    assert!(matches!(error, DnsError::NoNamespace { .. }), "{error:?}");
    assert!(error.to_string().contains("gone"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_namespace_cannot_be_entered() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let namespace = Namespace::open(file.path()).expect("it is a file");
    let error = namespace.listen().await.expect_err("no namespace");
    assert!(matches!(error, DnsError::Enter { .. }), "{error:?}");
}

#[tokio::test]
async fn with_lo_down_the_error_says_so() {
    let Some(container) = TestNamespace::new() else { return };
    let namespace = Namespace::open(container.path()).expect("opened");
    let error = namespace.listen().await.expect_err("no loopback");
    assert!(matches!(error, DnsError::LoopbackDown { .. }), "{error:?}");
    assert!(error.to_string().contains("ip link set lo up"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_apart() {
    let Some(container) = TestNamespace::new() else { return };
    container.bring_lo_up();
    let _udp = container.run(|| std::net::UdpSocket::bind("0.0.0.0:53").expect("bound"));
    let namespace = Namespace::open(container.path()).expect("opened");
    let error = namespace.listen().await.expect_err("the port is taken");
    assert!(matches!(error, DnsError::Taken { transport: "UDP", .. }), "{error:?}");
}

#[tokio::test]
async fn many_queries_may_wait_until_somebody_reads() {
    const QUERIES: u16 = 2000;
    let Some(container) = TestNamespace::new() else { return };
    container.bring_lo_up();
    let namespace = Namespace::open(container.path()).expect("opened");
    let sockets = namespace.listen().await.expect("bound");
    container.run(|| {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        for query in 0..QUERIES {
            client.send_to(&query.to_be_bytes(), (ADDRESS, PORT)).expect("sent");
        }
    });
    for query in 0..QUERIES {
        let mut buffer = [0; 2];
        sockets.udp.recv(&mut buffer).await.expect("received");
        assert_eq!(u16::from_be_bytes(buffer), query);
    }
}

#[tokio::test]
async fn a_name_server_of_the_container_may_share_the_port() {
    let Some(container) = TestNamespace::new() else { return };
    container.bring_lo_up();
    let any = SocketAddr::from(([0, 0, 0, 0], PORT));
    let own = container.run(move || {
        let udp = bind_udp(any).expect("bound");
        udp.set_nonblocking(true).expect("set");
        udp
    });
    let namespace = Namespace::open(container.path()).expect("opened");
    let sockets = namespace.listen().await.expect("bound beside it");
    container.run(|| {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        client.send_to(b"query", (ADDRESS, PORT)).expect("sent");
    });
    let mut buffer = [0; 16];
    let (length, _) = sockets.udp.recv_from(&mut buffer).await.expect("received");
    assert_eq!(&buffer[..length], b"query", "ours gets what is sent to its address");
    assert!(own.recv_from(&mut buffer).is_err(), "the other one does not");
}
