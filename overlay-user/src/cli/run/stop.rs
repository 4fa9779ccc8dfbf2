//! The requests of `overlay run` to the daemon when a container stops.

use std::time::Duration;

use crate::{
    agent::LocalClient,
    api::{Attached, ContainerByName, Detach, Drained, ErrorCode, LocalRequest},
    model::Endpoint,
};

/// How long the daemon may take to unwire a container.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// A container of ours at the daemon.
pub(super) struct Container {
    client: LocalClient,
    id: String,
    name: String,
}

impl Container {
    /// The container that the daemon attached.
    pub(super) fn new(client: LocalClient, attached: &Attached) -> Self {
        Self { client, id: attached.container.to_string(), name: attached.name.clone() }
    }

    /// Takes the container out of the pick everywhere and waits for its flows to end. Whatever
    /// goes wrong is told and is no reason not to stop.
    pub(super) async fn drain(&self) {
        eprintln!(
            "overlay: draining {}: it gets no new flows, and those it has may end (signal again \
             to stop at once)",
            self.name
        );
        let request = LocalRequest::Drain(ContainerByName { container: self.id.clone() });
        match self.client.local::<Drained>(request).await {
            Ok(Drained { lagging, .. }) if lagging.is_empty() => {}
            Ok(Drained { lagging, .. }) => eprintln!(
                "overlay: warning: these nodes may still send flows to {}: {}",
                self.name,
                lagging.join(", ")
            ),
            Err(error) => eprintln!("overlay: warning: could not drain {}: {error}", self.name),
        }
    }

    /// Removes the container. The command has ended, so there is nothing to drain.
    pub(super) async fn detach(&self) {
        let request = Detach { container: self.id.clone(), force: true };
        let detach = self.client.local::<Vec<Endpoint>>(LocalRequest::Detach(request));
        let why = match tokio::time::timeout(DETACH_TIMEOUT, detach).await {
            Ok(Ok(_)) => return,
            // The daemon saw the end of the command before we said so.
            Ok(Err(error)) if error.code == ErrorCode::NotFound => return,
            Ok(Err(error)) => error.message,
            Err(_) => format!("the daemon did not answer for {} s", DETACH_TIMEOUT.as_secs()),
        };
        eprintln!(
            "overlay: warning: could not detach {}: {why}\nThe daemon removes it by itself as \
             soon as it can.",
            self.name
        );
    }
}
