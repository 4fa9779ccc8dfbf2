//! Takes over the containers of an earlier daemon, and repairs changes to their namespaces and
//! links.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{attachments::Attachments, containers::Container, heal::HEALING, records::Record};
use crate::{
    agent::{
        error::AgentError,
        interfaces::{ENDPOINT_PREFIX, is_endpoint_link},
    },
    datapath::Datapath,
    link::Links,
};

impl<D: Datapath, L: Links> Attachments<D, L> {
    /// Takes over the containers of an earlier daemon: their links become known again, and
    /// containers without a namespace or process any more are cleaned up.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] when their file cannot be read.
    pub async fn adopt_containers(self: &Arc<Self>) -> Result<(), AgentError> {
        for record in self.containers.load()? {
            tracing::info!(container = %record.name, "it did not survive the reboot");
        }
        let present = self.endpoint_links().await?;
        for container in self.containers.all() {
            if let Err(why) = self.adopt(&container, &present).await {
                tracing::info!(container = %container.record().name, "not taken over: {why}");
                let _busy = container.busy.lock().await;
                if let Err(failure) = self.unwire_here(&container).await {
                    tracing::warn!("cleaning up: {failure}");
                }
            }
        }
        self.save_containers().await?;
        let ids = self.containers.all().iter().map(|c| c.id().clone()).collect();
        self.context.names.retain(ids).await;
        self.remove_orphaned_links().await
    }

    async fn adopt(
        self: &Arc<Self>,
        container: &Arc<Container>,
        present: &BTreeMap<String, u32>,
    ) -> Result<(), AgentError> {
        let record = container.record();
        self.check_namespace(&record)?;
        if let Some(process) = record.process {
            self.watch_process(container, process)?;
        }
        self.find_links(&record, present).await?;
        self.watch_readiness(container);
        self.health.watch(container);
        if let Err(error) = self.context.names.ensure(container.id(), &record.netns).await {
            self.context.conditions.fail(HEALING, error);
        }
        Ok(())
    }

    /// Notes the indexes of a container's links; makes those anew that are missing.
    async fn find_links(
        &self,
        record: &Record,
        present: &BTreeMap<String, u32>,
    ) -> Result<(), AgentError> {
        for wire in &record.wires {
            let ifindex = match present.get(&wire.host_name) {
                Some(ifindex) => *ifindex,
                None => {
                    tracing::warn!(container = %record.name, "{} is gone: made anew", wire.name);
                    self.context.datapath.detach(&wire.host_name)?;
                    self.context.links.ensure_endpoint_link(&wire.link(&record.netns)).await?
                }
            };
            self.note_netns(&record.netns, &wire.endpoint);
            self.reconciler.facts().links.insert(wire.endpoint.clone(), ifindex);
        }
        Ok(())
    }

    fn check_namespace(&self, record: &Record) -> Result<(), AgentError> {
        if self.context.host.namespace(&record.netns)? == record.namespace {
            return Ok(());
        }
        Err(AgentError::Host(format!("{} is another namespace by now", record.netns.display())))
    }

    /// Cleans up containers without a namespace any more.
    pub async fn sweep_namespaces(self: &Arc<Self>) {
        for container in self.containers.all() {
            let Ok(_busy) = container.busy.try_lock() else { continue };
            let record = container.record();
            if !container.is_attached() {
                continue;
            }
            if let Err(why) = self.check_namespace(&record) {
                tracing::info!(container = %record.name, "cleaning up: {why}");
                if let Err(error) = self.unwire(&container).await {
                    tracing::warn!(container = %record.name, "cleaning up: {error}");
                }
            }
        }
    }

    /// Makes links anew that another program removed.
    pub async fn repair_links(&self) -> Result<(), AgentError> {
        let present = self.endpoint_links().await?;
        for container in self.containers.all() {
            let Ok(_busy) = container.busy.try_lock() else { continue };
            if container.is_attached() {
                self.find_links(&container.record(), &present).await?;
            }
        }
        Ok(())
    }

    /// Attaches the program to the links of all containers; where it is attached nothing changes.
    pub fn attach_programs(&self) -> Result<(), AgentError> {
        let all = self.containers.all();
        all.iter().filter(|c| c.is_attached()).try_for_each(|c| self.attach_to(c))
    }

    /// Serves names in all containers; where they are served nothing changes.
    pub async fn serve_names(&self) -> Result<(), AgentError> {
        for container in self.containers.all().iter().filter(|c| c.is_attached()) {
            self.context.names.ensure(container.id(), &container.record().netns).await?;
        }
        Ok(())
    }

    async fn endpoint_links(&self) -> Result<BTreeMap<String, u32>, AgentError> {
        let links = self.context.links.list(ENDPOINT_PREFIX).await?;
        Ok(links.into_iter().filter(|(name, _)| is_endpoint_link(name)).collect())
    }

    /// Removes endpoints' links that belong to no container: a daemon ended in the middle.
    pub async fn remove_orphaned_links(&self) -> Result<(), AgentError> {
        let present = self.endpoint_links().await?;
        // Listed afterwards: a container notes a link before it makes it.
        let containers = self.containers.all();
        let known: BTreeSet<String> =
            containers.iter().flat_map(|c| c.record().wires).map(|w| w.host_name).collect();
        let attached = self.context.datapath.attachments()?;
        let attached = attached.into_iter().filter(|name| is_endpoint_link(name));
        for name in attached.chain(present.into_keys()).filter(|name| !known.contains(name)) {
            tracing::info!("removing {name}, which belongs to no container");
            self.context.datapath.detach(&name)?;
            self.context.links.remove(&name).await?;
        }
        Ok(())
    }
}
