//! Unwires containers: removes the objects of a container in the opposite order of their
//! creation, and continues after an error.

use std::sync::Arc;

use super::{
    attachments::Attachments,
    containers::{Container, Phase},
    drain::detached,
    records::Wire,
};
use crate::{
    agent::{error::AgentError, reconcile::Look},
    api::{ApiError, ContainerRef, Detach, ErrorCode, Request},
    datapath::Datapath,
    link::Links,
    model::{Endpoint, Id},
};

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// Drains a container unless told not to, and removes its endpoints.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], or why it could not be drained or removed cleanly.
    pub async fn detach(self: &Arc<Self>, request: Detach) -> Result<Vec<Endpoint>, ApiError> {
        let container = self.containers.find(&request.container)?;
        let _busy = container.busy.lock().await;
        if !container.is_attached() {
            return Err(detached(&container.record().name));
        }
        if !request.force {
            self.drain_held(&container).await.map_err(|error| {
                let error = ApiError::from(error);
                ApiError::new(error.code, format!("not drained: {}", error.message))
                    .hint("detach with --force to cut its flows")
            })?;
        }
        Ok(self.unwire(&container).await?)
    }

    /// Removes everything that was made for a container, for a caller that holds it. Goes on
    /// after a failure and reports the first; calling it again changes nothing. Endpoints that no
    /// manager could be told of are removed when one answers again.
    ///
    /// # Errors
    /// The first failure.
    pub async fn unwire(
        self: &Arc<Self>,
        container: &Container,
    ) -> Result<Vec<Endpoint>, AgentError> {
        if container.phase() == Phase::Gone {
            return Ok(Vec::new());
        }
        container.enter(Phase::Detaching);
        container.end_tasks();
        let removed = match self.remove_endpoints(container.id()).await {
            Err(AgentError::Api(error)) if error.code == ErrorCode::Unavailable => {
                tracing::warn!("{error}: the endpoints are removed when a manager answers");
                Ok(Vec::new())
            }
            outcome => outcome,
        };
        let unwired = self.unwire_here(container).await;
        let removed = removed?;
        unwired?;
        tracing::info!(container = %container.record().name, "detached");
        Ok(removed)
    }

    /// Detaches all containers without draining them. Goes on after failures.
    pub async fn detach_all(self: &Arc<Self>) -> (Vec<String>, Vec<AgentError>) {
        let (mut removed, mut failures) = (Vec::new(), Vec::new());
        for container in self.containers.all() {
            let _busy = container.busy.lock().await;
            if container.phase() == Phase::Gone {
                continue;
            }
            match self.unwire(&container).await {
                Ok(_) => removed.push(format!("container {}", container.record().name)),
                Err(error) => failures.push(error),
            }
        }
        (removed, failures)
    }

    /// Removes the endpoints of a container from the cluster's state.
    pub async fn remove_endpoints(&self, container: &Id) -> Result<Vec<Endpoint>, AgentError> {
        let remove = Request::EndpointRemove(ContainerRef { container: container.clone() });
        Ok(self.context.call(remove).await?)
    }

    /// Removes a container's objects on this host, without a call to a manager.
    pub async fn unwire_here(self: &Arc<Self>, container: &Container) -> Result<(), AgentError> {
        container.enter(Phase::Detaching);
        let record = container.record();
        self.context.names.remove(container.id());
        let removed = self.take_up(&record.wires).await;
        self.containers.remove(container);
        let saved = self.save_containers().await;
        removed.and(saved)
    }

    /// Removes map entries, attachments and links of some interfaces, in this order: nothing is
    /// sent to an interface that is gone.
    pub async fn take_up(self: &Arc<Self>, wires: &[Wire]) -> Result<(), AgentError> {
        {
            let mut facts = self.reconciler.facts();
            for wire in wires {
                facts.links.remove(&wire.endpoint);
                facts.netns.remove(&wire.endpoint);
            }
        }
        let mut outcome = self.reconciler.reconcile(Look::Memory).await;
        for wire in wires {
            let detached = self.context.datapath.detach(&wire.host_name).map_err(AgentError::from);
            let removed =
                self.context.links.remove(&wire.host_name).await.map_err(AgentError::from);
            outcome = outcome.and(detached).and(removed);
        }
        outcome
    }
}
