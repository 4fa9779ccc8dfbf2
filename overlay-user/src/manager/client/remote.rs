//! Calls the managers of a cluster from another host. Keeps connections open, and fails over to
//! another manager.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::connection::{Connection, failure};
use crate::{
    api::{ApiError, ErrorCode, Request},
    manager::error::{internal, invalid, unavailable},
    model::WatchEvent,
    pki::NodePki,
};

/// Longest duration of a call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest duration of a heartbeat. If the network fails, TCP retries at growing intervals on an
/// open connection, so it would notice late that the network works again.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest silence on a watch stream. A manager sends a sign of life every half second.
const SILENCE: Duration = Duration::from_secs(3);
/// Longest line of a watch stream.
const MAX_LINE: usize = 512 * 1024 * 1024;
/// Number of idle connections kept for later calls.
const MAX_IDLE: usize = 4;

/// The managers of a cluster, called with a node's certificate.
#[derive(Clone)]
pub struct RemoteManager {
    inner: Arc<Inner>,
}

struct Inner {
    tls: Arc<ClientConfig>,
    /// The manager that answered last comes first.
    managers: Mutex<Vec<SocketAddr>>,
    idle: Mutex<Vec<Connection>>,
}

impl RemoteManager {
    /// Makes a client for the managers at these addresses.
    ///
    /// # Errors
    /// `Invalid` if there is no address, `Internal` if the keys cannot be used.
    pub fn new(managers: Vec<SocketAddr>, pki: &NodePki) -> Result<Self, ApiError> {
        if managers.is_empty() {
            return Err(invalid("the address of no manager is known"));
        }
        let inner = Inner {
            tls: pki.client_config()?,
            managers: Mutex::new(managers),
            idle: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the manager that answered last.
    pub fn current(&self) -> Option<SocketAddr> {
        lock(&self.inner.managers).first().copied()
    }

    /// Replaces the list of managers. The current manager stays the current one if the new list has
    /// it.
    pub fn set_managers(&self, mut managers: Vec<SocketAddr>) {
        let mut current = lock(&self.inner.managers);
        if managers.is_empty() {
            return;
        }
        if let Some(index) = managers.iter().position(|m| Some(m) == current.first()) {
            managers.swap(0, index);
        }
        *current = managers;
    }

    /// Calls one manager after the other until one answers.
    ///
    /// # Errors
    /// The manager's error; `Unavailable` if no manager answers.
    pub async fn call<R: DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        let repeatable = is_repeatable(&request);
        let wait = match &request {
            Request::Sync(sync) => ANSWER_TIMEOUT + Duration::from_millis(sync.timeout_ms),
            Request::Heartbeat(_) => HEARTBEAT_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        };
        let (method, params) = split(&request)?;
        // A kept connection may have been closed in the meantime. It is then unknown if the manager
        // received the call, so only repeatable calls use a kept connection.
        while let Some(mut connection) = self.take_idle().filter(|_| repeatable) {
            match connection.post(&method, params.clone(), wait).await {
                // The other kept connections are no better. This waits only once for a manager that
                // hangs.
                Err(e) if e.code == ErrorCode::Unavailable => lock(&self.inner.idle).clear(),
                answer => {
                    self.keep(connection);
                    return answer;
                }
            }
        }
        let mut failures = Failures::default();
        for manager in self.managers() {
            let mut connection = match Connection::open(manager, &self.inner.tls).await {
                Ok(connection) => connection,
                Err(e) => {
                    failures.add(e);
                    continue;
                }
            };
            match connection.post(&method, params.clone(), wait).await {
                Err(e) if e.code == ErrorCode::Unavailable && repeatable => failures.add(e),
                answer => {
                    self.prefer(manager);
                    self.keep(connection);
                    return answer;
                }
            }
        }
        Err(failures.into_error())
    }

    /// Returns a stream of the state and its changes, over a separate connection.
    ///
    /// # Errors
    /// Same as [`Self::call`]. The stream itself ends with an error after three seconds of silence.
    pub async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, ApiError>>, ApiError> {
        let mut failures = Failures::default();
        for manager in self.managers() {
            let opened = async {
                let mut connection = Connection::open(manager, &self.inner.tls).await?;
                let body = connection.get("/v1/watch", ANSWER_TIMEOUT).await?;
                Ok((connection, body))
            };
            match opened.await {
                Ok((connection, body)) => {
                    self.prefer(manager);
                    return Ok(Lines { connection, body, buffer: BytesMut::new() }.into_stream());
                }
                Err(e) => failures.add(e),
            }
        }
        Err(failures.into_error())
    }

    fn managers(&self) -> Vec<SocketAddr> {
        lock(&self.inner.managers).clone()
    }

    fn prefer(&self, manager: SocketAddr) {
        let mut managers = lock(&self.inner.managers);
        if let Some(index) = managers.iter().position(|m| *m == manager) {
            managers.swap(0, index);
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = lock(&self.inner.idle);
        idle.retain(Connection::is_usable);
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = lock(&self.inner.idle);
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}

impl fmt::Debug for RemoteManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteManager").field("managers", &self.managers()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns true if a call may be repeated when it is unknown if the manager received it.
fn is_repeatable(request: &Request) -> bool {
    matches!(
        request,
        Request::State {}
            | Request::Heartbeat(_)
            | Request::Sync(_)
            | Request::FlowsLeft(_)
            | Request::EndpointCreate(_)
            | Request::EndpointUpdate(_)
            | Request::EndpointHealth(_)
            | Request::NodeAddresses(_)
            | Request::EndpointRemove(_)
            | Request::TokenList {}
    )
}

/// Splits a request into the method's name and the parameters as JSON.
pub(super) fn split(request: &Request) -> Result<(String, Vec<u8>), ApiError> {
    let value = serde_json::to_value(request).map_err(internal)?;
    match value.get("method") {
        Some(Value::String(method)) => {
            let params = serde_json::to_vec(&value["params"]).map_err(internal)?;
            Ok((method.clone(), params))
        }
        _ => Err(internal("a request without a method")),
    }
}

/// The error of each manager that was tried.
#[derive(Default)]
struct Failures(Vec<ApiError>);

impl Failures {
    fn add(&mut self, error: ApiError) {
        self.0.push(error);
    }

    fn into_error(self) -> ApiError {
        // An error from a manager says more than a manager that did not answer.
        if let Some(refusal) = self.0.iter().find(|e| e.code != ErrorCode::Unavailable) {
            return refusal.clone();
        }
        let hint = self.0.first().and_then(|e| e.hint.clone());
        let messages: Vec<String> = self.0.into_iter().map(|e| e.message).collect();
        ApiError { hint, ..unavailable(messages.join("; ")) }
    }
}

/// Splits a watch stream into lines.
struct Lines {
    connection: Connection,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    fn into_stream(self) -> BoxStream<'static, Result<WatchEvent, ApiError>> {
        stream::unfold(Some(self), |lines| async move {
            let mut lines = lines?;
            match lines.next().await {
                Ok(event) => Some((Ok(event), Some(lines))),
                Err(e) => Some((Err(e), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<WatchEvent, ApiError> {
        let manager = self.connection.manager;
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(searched + end);
                self.buffer.advance(1);
                return serde_json::from_slice(&line).map_err(|e| {
                    internal(format!("an event of the manager at {manager} is not one: {e}"))
                        .hint("are manager and node of the same version?")
                });
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(internal(format!("an event of the manager at {manager} is too long")));
            }
            match timeout(SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(e))) => return Err(failure(manager, &e)),
                Ok(None) => {
                    return Err(unavailable(format!("the manager at {manager} closed the stream")));
                }
                Err(_) => {
                    return Err(unavailable(format!(
                        "the manager at {manager} has been silent for {} s",
                        SILENCE.as_secs()
                    )));
                }
            }
        }
    }
}
