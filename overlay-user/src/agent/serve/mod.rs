//! The API on the unix socket, for whoever may open it: root on this host.

pub mod client;

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
    agent::{Agent, AgentError},
    api::{ApiError, ErrorCode, EventRequest, LocalRequest, Request},
    datapath::Datapath,
    link::Links,
    model::Role,
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
    // Under another name until nobody else can open it, then in place in one step.
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
    let watch = |request: EventRequest| {
        let watching = tokio::task::spawn_blocking(move || agent.watch_events(&request));
        async { watching.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic())) }
    };
    let events = match request {
        Ok(request) => watch(request).await.map_err(ApiError::from),
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

fn value<T: Serialize>(answer: T) -> Result<Value, ApiError> {
    serde_json::to_value(answer)
        .map_err(|e| ApiError::new(ErrorCode::Internal, format!("the answer is no JSON: {e}")))
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Answers a call to the agent of this host.
    ///
    /// # Errors
    /// The call's own.
    pub async fn local(self: &Arc<Self>, request: LocalRequest) -> Result<Value, ApiError> {
        match request {
            LocalRequest::Status {} => value(self.blocking(Self::status).await?),
            LocalRequest::Attach(attach) => value(self.attach(attach).await?),
            LocalRequest::Detach(detach) => value(self.detach(detach).await?),
            LocalRequest::Drain(which) => {
                let container = self.containers.find(&which.container)?;
                value(self.drain(&container).await?)
            }
            LocalRequest::Containers {} => value(self.local_containers()),
            LocalRequest::Tables {} => value(self.blocking(Self::tables).await?),
            LocalRequest::Leave(leave) => value(self.leave(leave).await?),
        }
    }

    /// Has a thread of its own read the maps: full ones take a while.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, AgentError> + Send + 'static,
    ) -> Result<T, AgentError> {
        let agent = self.clone();
        let read = tokio::task::spawn_blocking(move || read(&agent)).await;
        read.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
    }

    /// Answers a call to the managers. Where a manager runs on this host it is an administrator's
    /// call; elsewhere only what a node may ask is passed on.
    ///
    /// # Errors
    /// [`ErrorCode::Forbidden`] names the managers; otherwise the manager's.
    pub async fn cluster(self: &Arc<Self>, request: Request) -> Result<Value, ApiError> {
        match &request {
            // What only the container's own node may say.
            Request::EndpointUpdate(update) if self.containers.has(&update.container) => {
                return self.control.call(request).await;
            }
            _ => {}
        }
        if let Some(answer) = self.control.administer(request.clone()) {
            return answer.await;
        }
        match &request {
            // Without a manager the last known state is better than none.
            Request::State {} => value(&*self.state()),
            Request::Sync(_) => self.control.call(request).await,
            _ => Err(self.not_a_manager()),
        }
    }

    fn not_a_manager(&self) -> ApiError {
        let state = self.state();
        let managers: Vec<String> = state
            .nodes
            .values()
            .filter(|n| n.role == Role::Manager)
            .map(|n| format!("{} ({})", n.name, n.data_path_addr))
            .collect();
        let managers = if managers.is_empty() {
            self.config.managers.iter().map(ToString::to_string).collect()
        } else {
            managers
        };
        ApiError::new(ErrorCode::Forbidden, "this node is not a manager")
            .hint(format!("run the command on {}", managers.join(" or ")))
    }
}
