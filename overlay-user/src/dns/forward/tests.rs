use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hickory_proto::{op::Message, rr::RecordType};

use super::*;
use crate::dns::{
    message::Transport,
    testing::{
        addresses, bind_pair, bytes, decoded, query, request, serve_udp, upstream, upstream_reply,
    },
};

const GOOD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BAD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

/// Timeout that no upstream here can miss because it is slow.
const LONG: Duration = Duration::from_secs(60);
/// Timeout for tests with one silent upstream. The others answer well within it.
const SHORT: Duration = Duration::from_secs(1);

async fn good() -> SocketAddr {
    upstream(|q| vec![bytes(&upstream_reply(q, Ok(&[GOOD])))]).await
}

async fn failing(code: ResponseCode) -> SocketAddr {
    upstream(move |q| vec![bytes(&upstream_reply(q, Err(code)))]).await
}

async fn silent() -> SocketAddr {
    upstream(|_| vec![]).await
}

async fn ask_for(message: &Message, upstreams: &[SocketAddr], wait: Duration) -> Message {
    let reply = decoded(&ask(&request(message, Transport::Udp), upstreams, wait).await);
    assert_eq!(reply.metadata.id, message.metadata.id, "the client's id");
    assert_eq!(reply.queries, message.queries, "the client's question");
    reply
}

async fn asked(upstreams: &[SocketAddr], wait: Duration) -> Message {
    ask_for(&query("Example.org.", RecordType::A), upstreams, wait).await
}

#[tokio::test]
async fn the_first_upstreams_reply_is_passed_on() {
    let reply = asked(&[good().await, failing(ResponseCode::ServFail).await], LONG).await;
    assert_eq!(addresses(&reply), [GOOD]);
    assert_eq!(reply.answers[0].ttl, 300, "as the upstream said");
}

#[tokio::test]
async fn servfail_and_refused_lead_to_the_next_upstream() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let reply = asked(&[failing(code).await, good().await], LONG).await;
        assert_eq!(addresses(&reply), [GOOD], "{code}");
    }
}

#[tokio::test]
async fn a_silent_or_closed_upstream_leads_to_the_next_one() {
    let reply = asked(&[silent().await, good().await], SHORT).await;
    assert_eq!(addresses(&reply), [GOOD]);
    let closed: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let reply = asked(&[closed, good().await], LONG).await;
    assert_eq!(addresses(&reply), [GOOD]);
}

#[tokio::test]
async fn nxdomain_and_empty_replies_are_passed_on() {
    let reply = asked(&[failing(ResponseCode::NXDomain).await, good().await], LONG).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let empty = upstream(|q| vec![bytes(&upstream_reply(q, Ok(&[])))]).await;
    let reply = asked(&[empty, good().await], LONG).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
}

#[tokio::test]
async fn when_all_fail_the_last_failure_is_the_reply_or_else_servfail() {
    let reply = asked(&[failing(ResponseCode::Refused).await, silent().await], SHORT).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let reply = asked(&[silent().await], SHORT).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let reply = asked(&[], LONG).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn only_three_upstreams_are_asked_and_never_our_own_address() {
    let failing = failing(ResponseCode::ServFail).await;
    let reply = asked(&[failing, failing, failing, good().await], LONG).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let own: SocketAddr = "127.0.0.11:53".parse().expect("an address");
    let reply = asked(&[own, own, own, good().await], LONG).await;
    assert_eq!(addresses(&reply), [GOOD], "our own address does not count as one");
}

#[tokio::test]
async fn replies_with_a_wrong_id_or_question_or_that_are_no_replies_are_ignored() {
    let spoofing = upstream(|q| {
        let spoofed = || upstream_reply(q, Ok(&[BAD]));
        let mut wrong_id = spoofed();
        wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
        let mut wrong_name = spoofed();
        wrong_name.queries = query("example.com.", RecordType::A).queries;
        let mut wrong_type = spoofed();
        wrong_type.queries = query("example.org.", RecordType::AAAA).queries;
        let mut no_question = spoofed();
        no_question.queries.clear();
        let spoofed = [wrong_id, wrong_name, wrong_type, no_question];
        let mut replies: Vec<Vec<u8>> = spoofed.iter().map(bytes).collect();
        replies.extend([q.to_vec(), q[..7].to_vec(), vec![]]);
        replies.push(bytes(&upstream_reply(q, Ok(&[GOOD]))));
        replies
    })
    .await;
    assert_eq!(addresses(&asked(&[spoofing], LONG).await), [GOOD]);
}

#[tokio::test]
async fn a_reply_from_another_address_is_ignored() {
    let (udp, _tcp) = bind_pair().await;
    let address = udp.local_addr().expect("bound");
    let (other, _other_tcp) = bind_pair().await;
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, client) = udp.recv_from(&mut buffer).await.expect("received");
        let query = &buffer[..length];
        let spoofed = bytes(&upstream_reply(query, Ok(&[BAD])));
        other.send_to(&spoofed, client).await.expect("sent");
        let reply = bytes(&upstream_reply(query, Ok(&[GOOD])));
        udp.send_to(&reply, client).await.expect("sent");
    });
    assert_eq!(addresses(&asked(&[address], LONG).await), [GOOD]);
}

#[tokio::test]
async fn every_query_has_an_id_and_a_port_of_its_own() {
    let (udp, _tcp) = bind_pair().await;
    let address = udp.local_addr().expect("bound");
    let collected = tokio::spawn(async move {
        let (mut ids, mut ports) = (vec![], vec![]);
        let mut buffer = [0; 512];
        for _ in 0..20 {
            let (length, client) = udp.recv_from(&mut buffer).await.expect("received");
            ids.push([buffer[0], buffer[1]]);
            ports.push(client.port());
            let reply = bytes(&upstream_reply(&buffer[..length], Ok(&[GOOD])));
            udp.send_to(&reply, client).await.expect("sent");
        }
        (ids, ports)
    });
    let message = query("example.org.", RecordType::A);
    for _ in 0..20 {
        ask_for(&message, &[address], LONG).await;
    }
    let (mut ids, mut ports) = collected.await.expect("collected");
    ids.sort();
    ids.dedup();
    ports.sort();
    ports.dedup();
    // A few may be equal by chance.
    assert!(ids.len() > 15 && ports.len() > 15, "{ids:?} {ports:?}");
}

#[tokio::test]
async fn an_error_without_the_question_counts_as_one() {
    let refusing = upstream(|q| {
        let mut reply = upstream_reply(q, Err(ResponseCode::Refused));
        reply.queries.clear();
        vec![bytes(&reply)]
    })
    .await;
    assert_eq!(addresses(&asked(&[refusing, good().await], LONG).await), [GOOD]);
    let reply = asked(&[refusing], LONG).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

/// Starts an upstream that truncates its UDP replies and returns `count` addresses over TCP. Also
/// counts the TCP connections.
async fn cutting(count: u32) -> (SocketAddr, Arc<AtomicUsize>) {
    let (udp, tcp) = bind_pair().await;
    let address = udp.local_addr().expect("bound");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(serve_udp(udp, |q| {
        let mut reply = upstream_reply(q, Ok(&[BAD]));
        reply.metadata.truncation = true;
        vec![bytes(&reply)]
    }));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.expect("accepted");
            counted.fetch_add(1, Ordering::SeqCst);
            let mut query = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
            stream.read_exact(&mut query).await.expect("a query");
            let all: Vec<Ipv4Addr> = (0..count).map(|n| Ipv4Addr::from(0xc000_0200 + n)).collect();
            let reply = framed(&bytes(&upstream_reply(&query, Ok(&all)))).expect("framed");
            stream.write_all(&reply).await.expect("sent");
        }
    });
    (address, connections)
}

#[tokio::test]
async fn a_cut_reply_is_asked_for_again_over_tcp() {
    let (address, connections) = cutting(20).await;
    let reply = asked(&[address], LONG).await;
    assert!(!reply.metadata.truncation);
    assert_eq!(addresses(&reply).len(), 20);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_too_long_for_the_client_is_cut_over_udp_and_whole_over_tcp() {
    let (address, _) = cutting(200).await;
    let reply = asked(&[address], LONG).await;
    assert!(reply.metadata.truncation, "512 bytes do not hold 200 addresses");
    let over_tcp = request(&query("example.org.", RecordType::A), Transport::Tcp);
    let reply = decoded(&ask(&over_tcp, &[address], LONG).await);
    assert!(!reply.metadata.truncation);
    assert_eq!(addresses(&reply).len(), 200);
}

#[tokio::test]
async fn an_upstream_without_tcp_gives_its_cut_reply() {
    let (udp, tcp) = bind_pair().await;
    let address = udp.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            drop(tcp.accept().await);
        }
    });
    tokio::spawn(serve_udp(udp, |q| {
        let mut reply = upstream_reply(q, Ok(&[GOOD]));
        reply.metadata.truncation = true;
        vec![bytes(&reply)]
    }));
    let reply = asked(&[address], LONG).await;
    assert!(reply.metadata.truncation);
    assert_eq!(addresses(&reply), [GOOD]);
}
