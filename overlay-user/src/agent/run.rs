//! The agent's start and its loops.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Agent, AgentError,
    attach::records,
    host::{OWN_PREFIX, VXLAN},
    reconcile::Look,
};
use crate::{datapath::Datapath, link::Links};

/// How long the start waits for a live state before it takes the last known one.
const LIVE_WITHIN: Duration = Duration::from_secs(3);
/// How often the host's addresses, the containers' namespaces and their flows to the outside are
/// looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the real maps and interfaces are compared with what they should be.
const REPAIR_EVERY: Duration = Duration::from_secs(30);

const LOOKING: &str = "looking at the underlay interface";
const REPAIRING: &str = "comparing the kernel with the state";

/// The loops of a running agent; dropping it ends them and nothing else.
pub struct Tasks<D: Datapath, L: Links> {
    agent: Arc<Agent<D, L>>,
    set: JoinSet<()>,
}

impl<D: Datapath, L: Links> Tasks<D, L> {
    /// Waits for a loop to end, which none does unless it panics.
    pub async fn failed(&mut self) {
        self.set.join_next().await;
    }

    /// Ends the loops and writes the last state for the next start. Everything in the kernel
    /// stays as it is.
    pub async fn end(mut self) {
        self.set.shutdown().await;
        self.agent.containers.end_tasks();
        if let Some(state) = self.agent.live_state() {
            self.agent.cache(state).await;
        }
    }
}

impl<D: Datapath, L: Links> Drop for Tasks<D, L> {
    fn drop(&mut self) {
        self.agent.containers.end_tasks();
    }
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Sets up the host, adopts what an earlier daemon left, and starts to follow the managers.
    /// Returns when the maps show a state, or no state is known yet.
    ///
    /// # Errors
    /// [`AgentError`] when the host refuses; what this call made is removed again.
    pub async fn start(self: &Arc<Self>) -> Result<Tasks<D, L>, AgentError> {
        let fresh = self.datapath.attachments()?.is_empty()
            && self.links.list(OWN_PREFIX).await?.is_empty();
        let mut set = JoinSet::new();
        if let Err(error) = self.set_up(&mut set).await {
            if fresh {
                for failure in self.remove_from_kernel().await.1 {
                    tracing::warn!("cleaning up after a failed start: {failure}");
                }
            }
            return Err(error);
        }
        set.spawn(self.clone().reconcile_loop());
        set.spawn(self.clone().heartbeat_loop());
        set.spawn(self.clone().addresses_loop());
        set.spawn(self.clone().count_draining_loop());
        set.spawn(self.clone().cache_loop());
        set.spawn(self.clone().heal_loop());
        set.spawn(self.clone().look_loop());
        set.spawn(self.clone().repair_loop());
        Ok(Tasks { agent: self.clone(), set })
    }

    async fn set_up(self: &Arc<Self>, set: &mut JoinSet<()>) -> Result<(), AgentError> {
        self.look_around().await?;
        self.links.ensure_vxlan(VXLAN, self.config.data_path_port).await?;
        // Before anything is compiled: a container that is not known to be here would be taken
        // out of the maps.
        self.adopt_containers().await?;
        set.spawn(self.clone().follow_loop());
        let mut state = self.state.subscribe();
        let live = timeout(LIVE_WITHIN, state.wait_for(Option::is_some)).await.is_ok();
        if !live && let Some(cached) = records::load_state(&self.paths.cached_state()) {
            self.publish_cached(cached);
        }
        // Not before: without the state every name of the cluster would be unknown. When there is
        // none, other names are answered at least.
        self.names.answer();
        self.bring_up(Look::Maps).await?;
        self.attach_to_containers()
    }

    async fn look_loop(self: Arc<Self>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.look_around().await {
                Ok(()) => self.overcome(LOOKING),
                Err(error) => self.trouble(LOOKING, error),
            }
            self.sweep_namespaces().await;
            self.count_flows().await;
            self.count_active().await;
            self.look_at_sockets().await;
            self.look_for_shadowed_ports().await;
        }
    }

    async fn repair_loop(self: Arc<Self>) {
        let mut tick = interval(REPAIR_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            match self.repair().await {
                Ok(()) => self.overcome(REPAIRING),
                Err(error) => self.trouble(REPAIRING, error),
            }
        }
    }

    /// Compares maps, links and attachments with what they should be and puts right what differs.
    pub(super) async fn repair(self: &Arc<Self>) -> Result<(), AgentError> {
        self.repair_links().await?;
        self.bring_up(Look::Maps).await?;
        self.attach_to_containers()?;
        self.serve_names().await?;
        self.remove_orphaned_links().await
    }
}
