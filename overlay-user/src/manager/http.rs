//! The API over mutual TLS. The client's certificate identifies the caller once per connection.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Manager,
    authorize::may_watch,
    error::{conflict, internal, invalid, not_found},
    follow::follow,
    limits::Limits,
};
use crate::{
    api::{ApiError, ErrorCode, Identity, Request},
    pki::{NodePki, node_of},
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time from the end of one request to the end of the headers of the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest lifetime of a connection without a certificate. Such a client can only join, which takes
/// less time.
const STRANGER_LIFETIME: Duration = Duration::from_secs(20);
/// A peer counts as gone after unacknowledged data for this long (TCP_USER_TIMEOUT, milliseconds).
pub(super) const TCP_TIMEOUT_MS: u32 = 20_000;
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAX_BODY: usize = 1024 * 1024;
/// Pause after a failed accept. The usual reason is a lack of free file descriptors, which takes a
/// while to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running server. It ends with all of its connections when this is dropped.
#[derive(Debug)]
pub struct ServerHandle {
    /// Address that it listens on.
    pub addr: SocketAddr,
    accepting: AbortHandle,
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub(super) async fn serve(
    manager: Arc<Manager>,
    listen: SocketAddr,
    pki: &NodePki,
) -> Result<ServerHandle, ApiError> {
    let acceptor = TlsAcceptor::from(pki.server_config()?);
    let listener = TcpListener::bind(listen).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            conflict(format!("cannot listen on {listen}: another program does"))
                .hint("end that program, or choose another port with --listen-port")
        }
        _ => internal(format!("cannot listen on {listen}: {e}")),
    })?;
    let addr = listener.local_addr().map_err(internal)?;
    let accepting = tokio::spawn(accept(listener, Server { manager, acceptor })).abort_handle();
    Ok(ServerHandle { addr, accepting })
}

#[derive(Clone)]
struct Server {
    manager: Arc<Manager>,
    acceptor: TlsAcceptor,
}

async fn accept(listener: TcpListener, server: Server) {
    let limits = Limits::default();
    // This task owns the connections, so that they end with the server.
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                connections.spawn(connection(server.clone(), limits.clone(), stream, peer));
            }
            Err(e) => {
                tracing::warn!("accepting a connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(server: Server, limits: Limits, stream: TcpStream, peer: SocketAddr) {
    let stranger = limits.stranger(peer.ip());
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("{peer}: {e}");
        return;
    }
    if let Err(e) = setsockopt(&stream, sockopt::TcpUserTimeout, &TCP_TIMEOUT_MS) {
        tracing::debug!("{peer}: {e}");
        return;
    }
    let handshake = timeout(HANDSHAKE_TIMEOUT, server.acceptor.accept(stream));
    let stream = tokio::select! {
        () = stranger.evicted() => return,
        handshake = handshake => match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return tracing::debug!("{peer}: TLS handshake: {e}"),
            Err(_) => return tracing::debug!("{peer}: TLS handshake took too long"),
        },
    };
    let identity = identity(&stream);
    let exchange = exchange(server.manager, stream, identity.clone());
    match identity {
        Identity::Node(id) => {
            let Some(_member) = limits.node(&id) else {
                return tracing::warn!("{peer}: node {} has too many connections", id.short());
            };
            drop(stranger);
            exchange.await;
        }
        Identity::Anonymous | Identity::Administrator => tokio::select! {
            () = stranger.evicted() => {}
            _ = timeout(STRANGER_LIFETIME, exchange) => {}
        },
    }
}

/// Identifies the caller by its certificate, if there is one. The verifier has already checked it.
fn identity(stream: &TlsStream<TcpStream>) -> Identity {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match certificates.first().map(node_of) {
        Some(Ok(node)) => Identity::Node(node),
        Some(Err(_)) | None => Identity::Anonymous,
    }
}

async fn exchange(manager: Arc<Manager>, stream: TlsStream<TcpStream>, identity: Identity) {
    let routes = Router::new()
        .route("/v1/watch", get(watch))
        .route("/v1/{method}", post(call))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(Extension(identity))
        .with_state(manager);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(e) = served {
        tracing::debug!("a connection ended: {e}");
    }
}

async fn unknown() -> Response {
    refusal(&not_found("there is no such call").hint("calls are POST /v1/METHOD and GET /v1/watch"))
}

async fn call(
    State(manager): State<Arc<Manager>>,
    Extension(identity): Extension<Identity>,
    Path(method): Path<String>,
    body: Body,
) -> Response {
    let answer = async {
        let request = request(&method, &read(body).await?)?;
        manager.call(&identity, request).await
    };
    match answer.await {
        Ok(answer) => json_response(StatusCode::OK, &answer),
        Err(e) => refusal(&e),
    }
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            Err(invalid(format!("the request is cut short or larger than {MAX_BODY} bytes")))
        }
        Err(_) => Err(invalid("the request took too long to arrive")),
    }
}

/// Parses a call from its path and its body.
fn request(method: &str, body: &[u8]) -> Result<Request, ApiError> {
    let params: Value = if body.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(body)
            .map_err(|e| invalid(format!("the parameters of {method} are no JSON: {e}")))?
    };
    serde_json::from_value(json!({ "method": method, "params": params })).map_err(|e| {
        let text = e.to_string();
        if text.starts_with("unknown variant") {
            not_found(format!("there is no call {method:?}"))
        } else {
            invalid(format!("the parameters of {method} are not right: {text}"))
        }
    })
}

async fn watch(
    State(manager): State<Arc<Manager>>,
    Extension(identity): Extension<Identity>,
) -> Response {
    if let Err(e) = may_watch(&manager.state(), &identity) {
        return refusal(&e);
    }
    let events = Box::pin(follow(&manager.shared));
    let shared = Arc::downgrade(&manager.shared);
    drop(manager);
    let lines = stream::unfold((events, shared), move |(mut events, shared)| {
        let identity = identity.clone();
        async move {
            let event = events.next().await?;
            let manager = shared.upgrade()?;
            // The stream ends for a node that was removed in the meantime.
            may_watch(&manager.state(), &identity).ok()?;
            let line = event.to_line(&manager).ok()?;
            Some((Ok::<Bytes, Infallible>(line), (events, shared)))
        }
    });
    let mut response = Response::new(Body::from_stream(lines));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/x-ndjson"));
    response
}

fn refusal(error: &ApiError) -> Response {
    let status =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if error.code == ErrorCode::Internal {
        tracing::error!("answering a call: {error}");
    }
    json_response(status, error)
}

fn json_response(status: StatusCode, answer: &impl serde::Serialize) -> Response {
    let (status, json) = match serde_json::to_vec(answer) {
        Ok(json) => (status, json),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string().into_bytes()),
    };
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/json"));
    response
}
