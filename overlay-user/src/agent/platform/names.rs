//! The DNS servers of the containers.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use super::host::NameServers;
use crate::{
    agent::{blocking::blocking, config::AgentConfig, error::AgentError},
    dns::{DnsServers, DnsView, Keeper, read_resolv_conf},
    model::{ClusterState, Id},
    paths::Paths,
};

/// Where the host's own name servers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The DNS servers of the containers and the data for their answers.
pub struct ContainerNames {
    servers: DnsServers,
    keeper: Arc<Keeper>,
    view: Arc<ArcSwap<DnsView>>,
}

impl ContainerNames {
    /// Servers that wait until [`NameServers::answer`].
    pub fn new(config: &AgentConfig, paths: &Paths) -> Self {
        let upstreams = if config.dns_upstreams.is_empty() {
            // Without any, names of the cluster still resolve.
            read_resolv_conf(Path::new(RESOLV_CONF)).unwrap_or_else(|error| {
                tracing::warn!("{error}");
                Vec::new()
            })
        } else {
            config.dns_upstreams.clone()
        };
        let view = Arc::new(ArcSwap::from_pointee(DnsView { upstreams, ..DnsView::default() }));
        let keeper = Arc::new(Keeper::new(paths.keeper()));
        let servers = DnsServers::new(view.clone()).waiting().kept_by(keeper.clone());
        Self { servers, keeper, view }
    }
}

impl NameServers for ContainerNames {
    fn ensure<'a>(
        &'a self,
        container: &'a Id,
        netns: &'a Path,
    ) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            let served = self.servers.ensure(container, netns).await;
            served.map_err(|e| AgentError::Names(e.to_string()))
        })
    }

    fn remove(&self, container: &Id) {
        self.servers.remove(container);
    }

    fn retain(&self, containers: BTreeSet<Id>) -> BoxFuture<'_, ()> {
        Box::pin(self.servers.retain(containers))
    }

    fn end(&self) -> BoxFuture<'_, Result<Option<String>, AgentError>> {
        let keeper = self.keeper.clone();
        Box::pin(async move {
            match blocking(move || keeper.end()).await {
                Ok(ended) => Ok(ended.map(|pid| format!("keeper of DNS sockets (process {pid})"))),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn answer(&self) {
        self.servers.answer();
    }

    fn show(&self, state: &Arc<ClusterState>) {
        let upstreams = self.view.load().upstreams.clone();
        self.view.store(Arc::new(DnsView { state: state.clone(), upstreams }));
    }
}
