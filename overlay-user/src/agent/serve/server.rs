//! The API on the unix socket, for the callers that may open it: root on this host.

use std::{
    convert::Infallible,
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path as UrlPath, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::stream;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle, time::timeout};

use crate::{
    agent::{blocking::blocking, error::AgentError, run::Agent},
    api::{ApiError, ErrorCode, EventRequest, LocalRequest, Request},
    datapath::Datapath,
    link::Links,
};

/// How long calls in progress may take after the server was told to end.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The running server.
pub struct Server {
    socket: PathBuf,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Takes no more calls, waits for those in progress, removes the socket.
    pub async fn end(self) {
        // First, so that the next command finds no socket instead of a server that is ending.
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::warn!("{}: {error}", self.socket.display());
        }
        self.end.send_replace(true);
        let abort = self.task.abort_handle();
        if timeout(END_WITHIN, self.task).await.is_err() {
            abort.abort();
        }
    }
}

/// Serves the API at `socket` with mode 0600, in place of a socket that an earlier daemon left.
///
/// # Errors
/// [`AgentError::Io`] names the socket.
pub fn serve<D: Datapath, L: Links>(
    agent: Arc<Agent<D, L>>,
    socket: &Path,
) -> Result<Server, AgentError> {
    let failed = |e| AgentError::io(socket, e);
    // Under another name until its mode is set, then in place in one step.
    let temporary = socket.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    std::fs::set_permissions(&temporary, Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&temporary, socket).map_err(failed)?;
    let end = watch::Sender::new(false);
    let mut ended = end.subscribe();
    let serve = axum::serve(listener, router(agent)).with_graceful_shutdown(async move {
        // An error means that the server was dropped: end as well.
        let _ = ended.wait_for(|end| *end).await;
    });
    let task = tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!("the API server ended: {error}");
        }
    });
    Ok(Server { socket: socket.to_owned(), end, task })
}

fn router<D: Datapath, L: Links>(agent: Arc<Agent<D, L>>) -> Router {
    Router::new()
        .route("/v1/local/events", post(events::<D, L>))
        .route("/v1/local/{method}", post(local::<D, L>))
        .route("/v1/{method}", post(cluster::<D, L>))
        .fallback(|| async { answer::<Value>(Err(unknown("this path"))) })
        .with_state(agent)
}

async fn local<D: Datapath, L: Links>(
    State(agent): State<Arc<Agent<D, L>>>,
    UrlPath(method): UrlPath<String>,
    body: Bytes,
) -> Response {
    let leaves = method == "leave";
    let outcome = match parse::<LocalRequest>(&method, &body) {
        Ok(request) => {
            let agent = agent.clone();
            // On its own: a caller that hangs up must not leave things half-made.
            finish(tokio::spawn(async move { agent.local(request).await })).await
        }
        Err(error) => Err(error),
    };
    if leaves && outcome.is_ok() {
        agent.stop();
    }
    answer(outcome)
}

/// Events that are written at once.
const EVENTS_AT_ONCE: usize = 64;

/// A line for each event, until the caller hangs up or the daemon ends.
async fn events<D: Datapath, L: Links>(
    State(agent): State<Arc<Agent<D, L>>>,
    body: Bytes,
) -> Response {
    let request = serde_json::from_slice::<EventRequest>(&body)
        .map_err(|e| ApiError::new(ErrorCode::Invalid, format!("parameters of events: {e}")));
    let events = match request {
        Ok(request) => blocking(move || agent.watch_events(&request)).await.map_err(ApiError::from),
        Err(error) => Err(error),
    };
    let events = match events {
        Ok(events) => events,
        Err(error) => return answer::<Value>(Err(error)),
    };
    let lines = stream::unfold(events, |mut events| async move {
        let mut messages = Vec::new();
        if events.recv_many(&mut messages, EVENTS_AT_ONCE).await == 0 {
            return None;
        }
        let mut lines = Vec::new();
        for message in messages {
            serde_json::to_writer(&mut lines, &message).ok()?;
            lines.push(b'\n');
        }
        Some((Ok::<Bytes, Infallible>(lines.into()), events))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn cluster<D: Datapath, L: Links>(
    State(agent): State<Arc<Agent<D, L>>>,
    UrlPath(method): UrlPath<String>,
    body: Bytes,
) -> Response {
    answer(match parse::<Request>(&method, &body) {
        Ok(request) => finish(tokio::spawn(async move { agent.cluster(request).await })).await,
        Err(error) => Err(error),
    })
}

async fn finish(task: JoinHandle<Result<Value, ApiError>>) -> Result<Value, ApiError> {
    task.await.unwrap_or_else(|panic| {
        tracing::error!("a call failed: {panic}");
        Err(ApiError::new(ErrorCode::Internal, format!("the call failed: {panic}")))
    })
}

fn parse<R: DeserializeOwned>(method: &str, body: &[u8]) -> Result<R, ApiError> {
    let params: Value = if body.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(body).map_err(|e| {
            ApiError::new(ErrorCode::Invalid, format!("the parameters are no JSON object: {e}"))
        })?
    };
    serde_json::from_value(json!({ "method": method, "params": params })).map_err(|e| {
        let text = e.to_string();
        if text.starts_with("unknown variant") {
            unknown(&format!("method {method:?}"))
        } else {
            ApiError::new(ErrorCode::Invalid, format!("parameters of {method}: {text}"))
        }
    })
}

fn unknown(what: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("the API has not {what}"))
        .hint("calls are POST /v1/METHOD and POST /v1/local/METHOD; see the API's documentation")
}

fn answer<T: Serialize>(outcome: Result<T, ApiError>) -> Response {
    let (status, body) = match outcome {
        Ok(value) => (StatusCode::OK, serde_json::to_vec(&value)),
        Err(error) => {
            let status = StatusCode::from_u16(error.code.status());
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), serde_json::to_vec(&error))
        }
    };
    match body {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
