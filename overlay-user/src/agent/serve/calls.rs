//! The implementation of the API's calls.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    agent::{blocking::blocking, error::AgentError, run::Agent},
    api::{ApiError, ErrorCode, EventMessage, EventRequest, LocalRequest, Request},
    datapath::Datapath,
    link::Links,
    model::Role,
};

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
            LocalRequest::Status {} => value(self.read(Self::status).await?),
            LocalRequest::Attach(attach) => value(self.attachments.attach(attach).await?),
            LocalRequest::Detach(detach) => value(self.attachments.detach(detach).await?),
            LocalRequest::Drain(which) => value(self.attachments.drain(&which.container).await?),
            LocalRequest::Containers {} => value(self.attachments.list()),
            LocalRequest::Tables {} => value(self.read(Self::tables).await?),
            LocalRequest::Leave(leave) => value(self.leave(leave).await?),
        }
    }

    /// Reads maps on a thread of its own: full ones take a while.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, AgentError> + Send + 'static,
    ) -> Result<T, AgentError> {
        let agent = self.clone();
        blocking(move || read(&agent)).await
    }

    /// Begins to report events. The receiver gets them until it is dropped.
    ///
    /// # Errors
    /// [`AgentError::Api`] when a requested object does not exist, [`AgentError::Datapath`] when
    /// the programs' settings cannot be written.
    pub fn watch_events(
        self: &Arc<Self>,
        request: &EventRequest,
    ) -> Result<mpsc::Receiver<EventMessage>, AgentError> {
        let agent = Arc::downgrade(self);
        let names = move || agent.upgrade().map(|agent| agent.names());
        self.events.watch(request, &self.cluster.state(), names)
    }

    /// Answers a call to the managers. If a manager runs on this host, the call has an
    /// administrator's rights. Otherwise only the calls that a node may make are passed on.
    ///
    /// # Errors
    /// [`ErrorCode::Forbidden`] names the managers; otherwise the manager's.
    pub async fn cluster(self: &Arc<Self>, request: Request) -> Result<Value, ApiError> {
        match &request {
            // Only the container's own node may make these calls.
            Request::EndpointUpdate(update)
                if self.attachments.containers.has(&update.container) =>
            {
                return self.context.control.call(request).await;
            }
            _ => {}
        }
        if let Some(answer) = self.context.control.administer(request.clone()) {
            return answer.await;
        }
        match &request {
            // Without a manager the last known state is better than none.
            Request::State {} => value(&*self.cluster.state()),
            Request::Sync(_) => self.context.control.call(request).await,
            _ => Err(self.not_a_manager()),
        }
    }

    fn not_a_manager(&self) -> ApiError {
        let state = self.cluster.state();
        let managers: Vec<String> = state
            .nodes
            .values()
            .filter(|n| n.role == Role::Manager)
            .map(|n| format!("{} ({})", n.name, n.data_path_addr))
            .collect();
        let managers = if managers.is_empty() {
            self.context.config.managers.iter().map(ToString::to_string).collect()
        } else {
            managers
        };
        ApiError::new(ErrorCode::Forbidden, "this node is not a manager")
            .hint(format!("run the command on {}", managers.join(" or ")))
    }
}
