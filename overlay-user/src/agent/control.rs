//! The agent's interface to its managers, wherever they run.

use std::{net::SocketAddr, time::Duration};

use futures_util::{future::BoxFuture, stream::BoxStream};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    api::{ApiError, ErrorCode, Identity, Request},
    manager::Controller,
    model::WatchEvent,
};

/// An item of a watch; the watch ends after an error.
pub type Watch = BoxStream<'static, Result<WatchEvent, ApiError>>;

/// The managers of the cluster as one node reaches them.
pub trait Control: Send + Sync + 'static {
    /// A call as this node.
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Value, ApiError>>;

    /// The stream of changes, a snapshot first.
    fn watch(&self) -> BoxFuture<'_, Result<Watch, ApiError>>;

    /// A call as an administrator; `None` where no manager runs on this host.
    fn administer(&self, request: Request) -> Option<BoxFuture<'_, Result<Value, ApiError>>>;

    /// The manager followed at the moment.
    fn manager(&self) -> Option<SocketAddr>;

    /// Where the cluster's managers are according to its state.
    fn learn(&self, managers: Vec<SocketAddr>);
}

impl Control for Controller {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Value, ApiError>> {
        Box::pin(Self::call(self, request))
    }

    fn watch(&self) -> BoxFuture<'_, Result<Watch, ApiError>> {
        Box::pin(Self::watch(self))
    }

    fn administer(&self, request: Request) -> Option<BoxFuture<'_, Result<Value, ApiError>>> {
        match self {
            Self::Local(manager, _) => {
                Some(Box::pin(async move { manager.call(&Identity::Administrator, request).await }))
            }
            Self::Remote(_) => None,
        }
    }

    fn manager(&self) -> Option<SocketAddr> {
        match self {
            Self::Local(manager, node) => manager.state().nodes.get(node)?.api_addr,
            Self::Remote(remote) => remote.current(),
        }
    }

    fn learn(&self, managers: Vec<SocketAddr>) {
        if let Self::Remote(remote) = self {
            remote.set_managers(managers);
        }
    }
}

/// Longest wait for an answer of a manager, in addition to the time that the call itself may wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A call with an answer of a known type, within bounded time.
///
/// # Errors
/// The manager's, or [`ErrorCode::Unavailable`] when none answers in time.
pub(super) async fn call<R: DeserializeOwned>(
    control: &dyn Control,
    request: Request,
) -> Result<R, ApiError> {
    let within = match &request {
        Request::Sync(sync) => ANSWER_WITHIN + Duration::from_millis(sync.timeout_ms),
        _ => ANSWER_WITHIN,
    };
    let answer = tokio::time::timeout(within, control.call(request)).await.map_err(|_| {
        ApiError::new(ErrorCode::Unavailable, "the managers do not answer").hint(
            "check that a manager runs and is reachable; `overlay status` shows the one followed",
        )
    })??;
    serde_json::from_value(answer).map_err(|e| {
        ApiError::new(ErrorCode::Internal, format!("the manager's answer is not understood: {e}"))
            .hint("manager and agent may be of different versions")
    })
}
