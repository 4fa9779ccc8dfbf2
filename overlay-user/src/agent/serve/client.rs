//! Speaks to the daemon of this host through its unix socket.

use std::{io, path::PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{net::UnixStream, task::JoinHandle};

use crate::{
    api::{ApiError, ErrorCode, EventMessage, EventRequest, LocalRequest, Request},
    paths::Paths,
};

/// A client of the daemon of this host. Every call is a connection of its own.
#[derive(Clone, Debug)]
pub struct LocalClient {
    socket: PathBuf,
}

impl LocalClient {
    /// A client of the daemon with these directories.
    pub fn new(paths: &Paths) -> Self {
        Self { socket: paths.socket() }
    }

    /// A call to the agent.
    ///
    /// # Errors
    /// The agent's, or [`ErrorCode::Unavailable`] when no daemon runs.
    pub async fn local<R: DeserializeOwned>(&self, request: LocalRequest) -> Result<R, ApiError> {
        self.send("/v1/local/", &request).await
    }

    /// A call to the managers.
    ///
    /// # Errors
    /// The manager's, or [`ErrorCode::Unavailable`] when no daemon runs.
    pub async fn call<R: DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        self.send("/v1/", &request).await
    }

    /// The requested events of this host's packets.
    ///
    /// # Errors
    /// The agent's, or [`ErrorCode::Unavailable`] when no daemon runs.
    pub async fn events(&self, request: &EventRequest) -> Result<Events, ApiError> {
        let params = serde_json::to_vec(request)
            .map_err(|e| ApiError::new(ErrorCode::Invalid, e.to_string()))?;
        let (connection, response) = self.ask("/v1/local/events", params).await?;
        let status = response.status();
        let body = response.into_body();
        if status == StatusCode::OK {
            return Ok(Events { body, buffer: BytesMut::new(), _connection: connection });
        }
        let refused = body.collect().await.map_err(|e| ended(&e))?.to_bytes();
        Err(serde_json::from_slice(&refused)
            .unwrap_or_else(|_| strange("events", &format!("status {status}"))))
    }

    async fn send<R: DeserializeOwned>(
        &self,
        prefix: &str,
        request: &impl Serialize,
    ) -> Result<R, ApiError> {
        let (method, params) = split(request)?;
        let (status, body) = self.post(&format!("{prefix}{method}"), params).await?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|e| strange(&method, &e.to_string()));
        }
        Err(serde_json::from_slice(&body)
            .unwrap_or_else(|_| strange(&method, &format!("status {status}"))))
    }

    async fn post(&self, path: &str, params: Vec<u8>) -> Result<(StatusCode, Bytes), ApiError> {
        let (_connection, response) = self.ask(path, params).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| ended(&e))?.to_bytes();
        Ok((status, body))
    }

    /// Sends a call on a connection of its own, which lasts as long as the guard.
    async fn ask(
        &self,
        path: &str,
        params: Vec<u8>,
    ) -> Result<(Connection, Response<Incoming>), ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.refused(&e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| ended(&e))?;
        let task = tokio::spawn(async {
            // The task that waits for the answer gets the error.
            let _ = connection.await;
        });
        let connection = Connection { task };
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(params)))
            .map_err(|e| strange(path, &e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| ended(&e))?;
        Ok((connection, response))
    }

    fn refused(&self, error: &io::Error) -> ApiError {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ApiError::new(ErrorCode::Unavailable, "the daemon is not running on this host")
                    .hint(format!(
                        "start it with `overlay agent` or `systemctl start overlay` (nothing \
                         answers at {socket})"
                    ))
            }
            io::ErrorKind::PermissionDenied => {
                ApiError::new(ErrorCode::Forbidden, format!("{socket} is not open to this user"))
                    .hint("run the command as root")
            }
            _ => ApiError::new(ErrorCode::Unavailable, format!("{socket}: {error}")),
        }
    }
}

/// A connection that is closed with the value.
#[derive(Debug)]
struct Connection {
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The stream of events.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
    _connection: Connection,
}

impl Events {
    /// The next one; `None` when the daemon has ended.
    ///
    /// # Errors
    /// When the connection breaks, or the daemon is of another version.
    pub async fn next(&mut self) -> Result<Option<EventMessage>, ApiError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let message = serde_json::from_slice(&line);
                return message.map(Some).map_err(|e| strange("events", &e.to_string()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ended(&error)),
                None => return Ok(None),
            }
        }
    }
}

fn ended(error: &hyper::Error) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, format!("the daemon did not answer: {error}"))
        .hint("it may have ended meanwhile; see its log and `overlay status`")
}

/// The method's name and the parameters' JSON of a request.
fn split(request: &impl Serialize) -> Result<(String, Vec<u8>), ApiError> {
    let invalid = |e: String| ApiError::new(ErrorCode::Invalid, e);
    let mut value = serde_json::to_value(request).map_err(|e| invalid(e.to_string()))?;
    let params = value.get_mut("params").map(Value::take).unwrap_or_default();
    let method = value.get("method").and_then(Value::as_str);
    let method = method.ok_or_else(|| invalid("a request without a method".to_owned()))?;
    Ok((method.to_owned(), params.to_string().into_bytes()))
}

fn strange(method: &str, what: &str) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("{method}: the answer is not understood: {what}"))
        .hint("command and daemon may be of different versions; restart the daemon")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Status;

    #[tokio::test]
    async fn without_a_daemon_the_error_says_how_to_start_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let client = LocalClient { socket: dir.path().join("overlay.sock") };
        let error = client.local::<Status>(LocalRequest::Status {}).await.expect_err("no daemon");
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.to_string().contains("overlay agent"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_daemon_left_means_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let client = LocalClient { socket: dir.path().join("overlay.sock") };
        drop(std::os::unix::net::UnixListener::bind(&client.socket).expect("bound"));
        let error = client.local::<Status>(LocalRequest::Status {}).await.expect_err("no daemon");
        assert!(error.message.contains("not running"), "{error}");
    }

    #[test]
    fn a_request_is_split_into_its_path_and_its_parameters() {
        let (method, params) = split(&LocalRequest::Status {}).expect("split");
        assert_eq!((method.as_str(), params.as_slice()), ("status", &b"{}"[..]));
    }
}
