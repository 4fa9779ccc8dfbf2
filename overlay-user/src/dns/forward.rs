//! Queries to the upstreams, from the agent's own network namespace.
//!
//! A reply must match the query in four ways: it comes from the address and port of the upstream
//! (the socket is connected), goes to the source port (the kernel chooses it at random for every
//! query), and has the id (also random) and the question of the query.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Header, MessageType, Query, ResponseCode},
    serialize::binary::{BinDecodable as _, BinDecoder},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    message::{HEADER_LEN, MAX_UDP, Request},
    resolv_conf::{MAX_NAMESERVERS, is_usable},
};

/// Queries the upstreams one after the other, each for at most `wait`. The reply has the client's
/// id.
///
/// After SERVFAIL, REFUSED, a timeout or an unreachable upstream the next one is queried. Any other
/// reply is final, NXDOMAIN too. If no upstream is left, the reply is the last failed one, or
/// SERVFAIL if there was none.
pub(super) async fn ask(request: &Request, upstreams: &[SocketAddr], wait: Duration) -> Vec<u8> {
    let mut failure = None;
    for upstream in upstreams.iter().filter(|u| is_usable(u)).take(MAX_NAMESERVERS) {
        match timeout(wait, exchange(request, *upstream)).await {
            Ok(Ok(reply)) if is_failure(&reply) => {
                tracing::debug!(%upstream, query = %request.query, "the upstream failed");
                failure = Some(reply);
            }
            Ok(Ok(reply)) => return request.relay(reply),
            Ok(Err(error)) => {
                tracing::debug!(%upstream, query = %request.query, "no reply: {error}");
            }
            Err(_) => {
                tracing::debug!(%upstream, query = %request.query, "no reply within {wait:?}");
            }
        }
    }
    match failure {
        Some(reply) => request.relay(reply),
        None => request.error(ResponseCode::ServFail),
    }
}

/// Sends a query to one upstream: over UDP, and over TCP after a truncated reply.
async fn exchange(request: &Request, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let reply = over_udp(request, upstream).await?;
    if reply.truncated {
        match over_tcp(request, upstream).await {
            Ok(whole) => return Ok(whole),
            // A truncated reply is better than none: the client may be able to use it.
            Err(error) => tracing::debug!(%upstream, "no reply over TCP: {error}"),
        }
    }
    Ok(reply.bytes)
}

struct UdpReply {
    bytes: Vec<u8>,
    truncated: bool,
}

async fn over_udp(request: &Request, upstream: SocketAddr) -> io::Result<UdpReply> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let (id, query) = with_new_id(request);
    socket.send(&query).await?;
    // The buffer has one byte more than the limit, so that a longer datagram is noticed.
    let mut buffer = vec![0; MAX_UDP + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Some(header) = reply_header(&buffer[..length], id, &request.query) else { continue };
        let cut = length > MAX_UDP;
        buffer.truncate(length.min(MAX_UDP));
        if cut {
            // Marks the reply as truncated, in case TCP fails.
            buffer[2] |= 0b0000_0010;
        }
        return Ok(UdpReply { bytes: buffer, truncated: cut || header.truncation });
    }
}

async fn over_tcp(request: &Request, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let (id, query) = with_new_id(request);
    stream.write_all(&framed(&query)?).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    match reply_header(&reply, id, &request.query) {
        Some(_) => Ok(reply),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "a reply to another question")),
    }
}

/// Puts the length in front of a message (RFC 1035, 4.2.2).
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Returns the client's query with a new secret id.
fn with_new_id(request: &Request) -> (u16, Vec<u8>) {
    let id: u16 = rand::random();
    let mut query = request.bytes.clone();
    query[..2].copy_from_slice(&id.to_be_bytes());
    (id, query)
}

/// Returns the header of a reply to our query; `None` for any other message.
fn reply_header(bytes: &[u8], id: u16, query: &Query) -> Option<Header> {
    let mut decoder = BinDecoder::new(bytes);
    let header = Header::read(&mut decoder).ok()?;
    if header.message_type != MessageType::Response || header.id != id {
        return None;
    }
    if header.counts.queries == 0 && bytes.len() == HEADER_LEN {
        // Some servers send an error without the question. Such a reply contains no data to forge.
        return (header.response_code != ResponseCode::NoError).then_some(header);
    }
    let asked = Query::read(&mut decoder).ok()?;
    // Names compare case-insensitively.
    (header.counts.queries == 1 && asked == *query).then_some(header)
}

fn is_failure(reply: &[u8]) -> bool {
    Header::read(&mut BinDecoder::new(reply)).is_ok_and(|header| {
        matches!(header.response_code, ResponseCode::ServFail | ResponseCode::Refused)
    })
}

#[cfg(test)]
mod tests;
