//! The data that every part of the agent uses.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{
    conditions::Conditions,
    config::AgentConfig,
    control::{self, Control},
    platform::{Host, NameServers},
};
use crate::{
    api::{ApiError, Request},
    model::Id,
    paths::Paths,
};

/// The parts of an [`Agent`](super::Agent).
pub struct Parts<D, L> {
    /// Where the host keeps files.
    pub paths: Paths,
    /// The decisions of `init` or `join`.
    pub config: AgentConfig,
    /// The kernel's programs and maps.
    pub datapath: D,
    /// The kernel's interfaces.
    pub links: L,
    /// The managers.
    pub control: Arc<dyn Control>,
    /// The DNS servers of the containers.
    pub names: Arc<dyn NameServers>,
    /// The rest of the host.
    pub host: Arc<dyn Host>,
}

/// The host, the managers and the kernel, as the parts of the agent share them.
pub struct Context<D, L> {
    pub paths: Paths,
    pub config: AgentConfig,
    pub datapath: D,
    pub links: L,
    pub control: Arc<dyn Control>,
    pub names: Arc<dyn NameServers>,
    pub host: Arc<dyn Host>,
    /// The current failures.
    pub conditions: Arc<Conditions>,
}

impl<D, L> Context<D, L> {
    pub fn new(parts: Parts<D, L>) -> Self {
        let Parts { paths, config, datapath, links, control, names, host } = parts;
        let conditions = Arc::default();
        Self { paths, config, datapath, links, control, names, host, conditions }
    }

    /// This node.
    pub fn node(&self) -> &Id {
        &self.config.node
    }

    /// The most entries that the conntrack table has.
    pub fn conntrack_size(&self) -> usize {
        usize::try_from(self.config.conntrack_size).unwrap_or(usize::MAX)
    }

    /// Calls a manager, within bounded time.
    ///
    /// # Errors
    /// The manager's, or [`ErrorCode::Unavailable`](crate::api::ErrorCode::Unavailable) when no
    /// manager answers in time.
    pub async fn call<R: DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        control::call(&*self.control, request).await
    }
}
