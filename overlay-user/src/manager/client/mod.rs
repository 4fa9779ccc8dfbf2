//! The other side of the API: a manager in this process or somewhere on the network.

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

/// Whom an agent asks.
#[derive(Clone, Debug)]
pub enum Controller {
    /// The manager in this process, in the name of this node.
    Local(Arc<Manager>, Id),
    /// A manager on the network, with this node's certificate.
    Remote(RemoteManager),
}

impl Controller {
    /// Calls, as this node.
    ///
    /// # Errors
    /// What the manager answers; `Unavailable` when none does.
    pub async fn call<R: DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        match self {
            Self::Local(manager, node) => {
                let answer = manager.call(&Identity::Node(node.clone()), request).await?;
                serde_json::from_value(answer).map_err(internal)
            }
            Self::Remote(remote) => remote.call(request).await,
        }
    }

    /// The state and what becomes of it. A remote stream ends with an error when nothing was heard
    /// for three seconds; call again then, which finds another manager if need be.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, ApiError>>, ApiError> {
        match self {
            Self::Local(manager, _) => Ok(manager.watch().map(Ok).boxed()),
            Self::Remote(remote) => remote.watch().await,
        }
    }
}
