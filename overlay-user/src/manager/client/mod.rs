//! Client side of the API: a manager in this process or on another host.

mod connection;
mod join;
mod remote;

use std::sync::Arc;

use futures_util::{StreamExt as _, stream::BoxStream};
pub use join::{JoinRequest, join};
pub use remote::RemoteManager;
use serde::de::DeserializeOwned;

use super::{Manager, error::internal};
use crate::{
    api::{ApiError, Identity, Request},
    model::{Id, WatchEvent},
};

/// The manager that an agent calls.
#[derive(Clone, Debug)]
pub enum Controller {
    /// A manager in this process, called as this node.
    Local(Arc<Manager>, Id),
    /// A manager on another host, called with this node's certificate.
    Remote(RemoteManager),
}

impl Controller {
    /// Makes a call as this node.
    ///
    /// # Errors
    /// The manager's error; `Unavailable` if no manager answers.
    pub async fn call<R: DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        match self {
            Self::Local(manager, node) => {
                let answer = manager.call(&Identity::Node(node.clone()), request).await?;
                serde_json::from_value(answer).map_err(internal)
            }
            Self::Remote(remote) => remote.call(request).await,
        }
    }

    /// Returns a stream of the state and its changes. A remote stream ends with an error after
    /// three seconds of silence. A new call of `watch` then finds another manager if necessary.
    ///
    /// # Errors
    /// Same as [`Self::call`].
    pub async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, ApiError>>, ApiError> {
        match self {
            Self::Local(manager, _) => Ok(manager.watch().map(Ok).boxed()),
            Self::Remote(remote) => remote.watch().await,
        }
    }
}
