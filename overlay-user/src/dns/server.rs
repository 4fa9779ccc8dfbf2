//! The server of one container: reads queries from its two sockets and sends replies.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::op::ResponseCode;
use rand::seq::SliceRandom as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use super::{
    Limits, forward,
    message::{MAX_UDP, Rejected, Request, Transport},
    resolve::{Answer, resolve},
    servers::Directories,
    sockets::Sockets,
};
use crate::model::Id;

/// Pause after an error that may last, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers the queries of one container.
pub(super) struct Responder {
    container: Id,
    directories: Arc<Directories>,
    limits: Limits,
    slots: Arc<Semaphore>,
}

/// How a message is handled.
enum Outcome {
    /// No reply.
    Ignore,
    /// This reply.
    Reply(Vec<u8>),
    /// The upstreams' reply, when it arrives.
    Forward(Request, OwnedSemaphorePermit),
}

impl Responder {
    pub fn new(container: Id, directories: Arc<Directories>, limits: Limits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.forwards));
        Self { container, directories, limits, slots }
    }

    fn outcome(&self, bytes: &[u8], transport: Transport) -> Outcome {
        let request = match Request::parse(bytes, transport) {
            Ok(request) => request,
            Err(Rejected::Silently) => return Outcome::Ignore,
            Err(Rejected::With(reply)) => return Outcome::Reply(reply),
        };
        let current = self.directories.current();
        match resolve(&current, &self.container, &request.query) {
            Answer::Forward => match Arc::clone(&self.slots).try_acquire_owned() {
                Ok(permit) => Outcome::Forward(request, permit),
                Err(_) => {
                    tracing::debug!(
                        container = %self.container,
                        "{} forwarded queries are under way; refused {}",
                        self.limits.forwards,
                        request.query
                    );
                    Outcome::Reply(request.error(ResponseCode::Refused))
                }
            },
            Answer::Addresses(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                Outcome::Reply(request.reply(&Answer::Addresses(addresses)))
            }
            Answer::Addresses6(mut addresses) => {
                addresses.shuffle(&mut rand::rng());
                Outcome::Reply(request.reply(&Answer::Addresses6(addresses)))
            }
            answer => Outcome::Reply(request.reply(&answer)),
        }
    }

    async fn forward(&self, request: &Request) -> Vec<u8> {
        let upstreams = self.directories.upstreams();
        forward::ask(request, &upstreams, self.limits.upstream_timeout).await
    }
}

/// Serves until this is dropped. All queries under way end with it.
pub(super) async fn serve(sockets: Arc<Sockets>, responder: Arc<Responder>) {
    let udp = serve_udp(Arc::clone(&sockets), Arc::clone(&responder));
    tokio::join!(udp, serve_tcp(&sockets.tcp, responder));
}

async fn serve_udp(sockets: Arc<Sockets>, responder: Arc<Responder>) {
    let socket = &sockets.udp;
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = forwards.join_next() => continue,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(container = %responder.container, "DNS over UDP: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match responder.outcome(&buffer[..length], Transport::Udp) {
            Outcome::Ignore => {}
            Outcome::Reply(reply) => send(socket, &reply, client).await,
            Outcome::Forward(request, permit) => {
                let (sockets, responder) = (Arc::clone(&sockets), Arc::clone(&responder));
                forwards.spawn(async move {
                    let reply = responder.forward(&request).await;
                    drop(permit);
                    send(&sockets.udp, &reply, client).await;
                });
            }
        }
    }
}

/// Sends a reply. If it is lost, the client must ask again.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, "a DNS reply was not sent: {error}");
    }
}

async fn serve_tcp(listener: &TcpListener, responder: Arc<Responder>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) if connections.len() < responder.limits.connections => {
                let responder = Arc::clone(&responder);
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &responder).await {
                        tracing::debug!(container = %responder.container, "DNS over TCP: {error}");
                    }
                });
            }
            Ok((stream, client)) => {
                tracing::debug!(%client, "too many DNS connections; closed the newest");
                drop(stream);
            }
            Err(error) => {
                tracing::debug!(container = %responder.container, "DNS over TCP: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection: answers query after query, in order, until the client closes or is
/// silent.
async fn converse(mut stream: TcpStream, responder: &Responder) -> io::Result<()> {
    let idle = responder.limits.idle_timeout;
    loop {
        let query = match timeout(idle, read_message(&mut stream)).await {
            Ok(Ok(Some(query))) => query,
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        };
        let reply = match responder.outcome(&query, Transport::Tcp) {
            Outcome::Ignore => return Ok(()),
            Outcome::Reply(reply) => reply,
            Outcome::Forward(request, permit) => {
                let reply = responder.forward(&request).await;
                drop(permit);
                reply
            }
        };
        // A client that does not read must not hold a connection for ever either.
        match timeout(idle, stream.write_all(&forward::framed(&reply)?)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
}

/// Reads the next message; `None` if the client has closed.
async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests;
