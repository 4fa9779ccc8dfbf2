//! One connection to a manager.

use std::{error::Error as StdError, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{AlertDescription, CertificateError, ClientConfig, pki_types::ServerName};
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    api::ApiError,
    manager::{
        error::{internal, unauthenticated, unavailable},
        http::TCP_TIMEOUT_MS,
    },
    pki::MANAGER_NAME,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer. The state of the largest cluster takes a tenth of it.
const MAX_ANSWER: usize = 512 * 1024 * 1024;
const HINT: &str =
    "check that `overlay agent` runs on the manager's host and that its TCP port can be reached";

/// A connection to a manager, ready for a request.
pub(super) struct Connection {
    pub manager: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub async fn open(manager: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Self, ApiError> {
        let unreachable =
            |why: String| unavailable(format!("no manager answers at {manager}: {why}")).hint(HINT);
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(manager))
            .await
            .map_err(|_| unreachable("connecting took too long".to_owned()))?
            .map_err(|e| unreachable(e.to_string()))?;
        stream.set_nodelay(true).map_err(internal)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &TCP_TIMEOUT_MS).map_err(internal)?;
        let name = ServerName::try_from(MANAGER_NAME).map_err(internal)?;
        let connector = TlsConnector::from(Arc::clone(tls));
        let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream))
            .await
            .map_err(|_| unreachable("the TLS handshake took too long".to_owned()))?
            .map_err(|e| failure(manager, &e))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| failure(manager, &e))?;
        // The task ends when the sender and the last answer are dropped, or when the manager is
        // gone. A caller that waits for an answer then gets the error.
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("connection to {manager}: {e}");
            }
        });
        Ok(Self { manager, sender })
    }

    /// Returns true if the connection can take another request.
    pub fn is_usable(&self) -> bool {
        self.sender.is_ready()
    }

    /// Makes a call and waits for the answer.
    pub async fn post<R: DeserializeOwned>(
        &mut self,
        method: &str,
        params: Vec<u8>,
        wait: Duration,
    ) -> Result<R, ApiError> {
        let request = Request::post(format!("/v1/{method}"))
            .header("host", MANAGER_NAME)
            .header("content-type", "application/json")
            .body(Full::new(params.into()))
            .map_err(internal)?;
        let response = self.send(request, wait).await?;
        let status = response.status();
        let bytes = self.read(response.into_body()).await?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes).map_err(|e| self.nonsense(&e));
        }
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|e| self.nonsense(&e)))
    }

    /// Makes a GET request and returns the body as it arrives.
    pub async fn get(&mut self, path: &str, wait: Duration) -> Result<Incoming, ApiError> {
        let request = Request::get(path)
            .header("host", MANAGER_NAME)
            .body(Full::default())
            .map_err(internal)?;
        let response = self.send(request, wait).await?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let bytes = self.read(response.into_body()).await?;
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|e| self.nonsense(&e)))
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Result<Response<Incoming>, ApiError> {
        let manager = self.manager;
        timeout(wait, self.sender.send_request(request))
            .await
            .map_err(|_| {
                unavailable(format!("the manager at {manager} does not answer")).hint(HINT)
            })?
            .map_err(|e| failure(manager, &e))
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, ApiError> {
        let manager = self.manager;
        let broken = |why: &dyn std::fmt::Display| {
            unavailable(format!("the answer of the manager at {manager} broke off: {why}"))
        };
        let collected = timeout(BODY_TIMEOUT, Limited::new(body, MAX_ANSWER).collect())
            .await
            .map_err(|_| broken(&"it took too long"))?;
        Ok(collected.map_err(|e| broken(&e))?.to_bytes())
    }

    fn nonsense(&self, error: &serde_json::Error) -> ApiError {
        internal(format!(
            "the answer of the manager at {} cannot be understood: {error}",
            self.manager
        ))
        .hint("are manager and node of the same version?")
    }
}

/// Explains a failed connection.
pub(super) fn failure(manager: SocketAddr, error: &(dyn StdError + 'static)) -> ApiError {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        )) => unauthenticated(format!(
            "the manager at {manager} is not of the cluster that the token is for, or somebody is \
             in between: its CA has another digest"
        ))
        .hint("compare the token with what `overlay token create` prints on the manager"),
        Some(rustls::Error::InvalidCertificate(e)) => {
            unauthenticated(format!("what answers at {manager} is no manager of this cluster: {e}"))
                .hint("check the address, and whether the host was set up anew since")
        }
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificate(*alert) => {
            unauthenticated(format!(
                "the manager at {manager} refused this node's certificate ({alert:?})"
            ))
            .hint("this node may belong to another cluster: `overlay leave --force`, then join")
        }
        _ => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(next) = cause {
                text = format!("{text}: {next}");
                cause = next.source();
            }
            unavailable(format!("the connection to the manager at {manager} failed: {text}"))
                .hint(HINT)
        }
    }
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied
    )
}

/// Returns the TLS error at the bottom of an error, if there is one.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
