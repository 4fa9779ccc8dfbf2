//! The agent: its parts, its start and its loops.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    attach::Attachments,
    context::{Context, Parts},
    count::{
        backends::BackendFlows, draining::DrainingFlows, egress::EgressFlows, sockets::Sockets,
    },
    error::AgentError,
    events::Hub,
    follow::{Cluster, StateCache},
    host::{HostSetup, remove_from_kernel},
    interfaces::{OWN_PREFIX, VXLAN},
    reconcile::{Look, Reconciler},
    report::Reporter,
};
use crate::{datapath::Datapath, link::Links};

/// How long the start waits for a live state before it takes the last known one.
const LIVE_WITHIN: Duration = Duration::from_secs(3);
/// How often the host's addresses, the containers' namespaces and their flows to the outside are
/// looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the real maps and interfaces are compared with the wanted ones.
const REPAIR_EVERY: Duration = Duration::from_secs(30);

const LOOKING: &str = "looking at the underlay interface";
const REPAIRING: &str = "comparing the kernel with the state";

/// The counters besides those of the programs.
pub(super) struct Counters<D, L> {
    pub(super) draining: Arc<DrainingFlows<D, L>>,
    pub(super) backends: Arc<BackendFlows<D, L>>,
    pub(super) egress: Arc<EgressFlows<D, L>>,
    pub(super) sockets: Arc<Sockets<D, L>>,
}

/// The agent of one host.
pub struct Agent<D, L> {
    pub(super) context: Arc<Context<D, L>>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) cache: Arc<StateCache>,
    pub(super) events: Arc<Hub<D, L>>,
    pub(super) reconciler: Arc<Reconciler<D, L>>,
    pub(super) host: Arc<HostSetup<D, L>>,
    pub(super) attachments: Arc<Attachments<D, L>>,
    pub(super) counters: Counters<D, L>,
    stop: watch::Sender<bool>,
}

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
        self.agent.attachments.containers.end_tasks();
        if let Some(state) = self.agent.cluster.live_state() {
            self.agent.cache.save(state).await;
        }
    }
}

impl<D: Datapath, L: Links> Drop for Tasks<D, L> {
    fn drop(&mut self) {
        self.agent.attachments.containers.end_tasks();
    }
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// An agent that does nothing yet; see [`Agent::start`].
    pub fn new(parts: Parts<D, L>) -> Arc<Self> {
        let context = Arc::new(Context::new(parts));
        let cluster = Arc::new(Cluster::new(&context));
        let events = Arc::new(Hub::new(context.clone()));
        let reconciler =
            Arc::new(Reconciler::new(context.clone(), cluster.clone(), events.clone()));
        let of_host = (context.clone(), cluster.clone(), reconciler.clone());
        let counters = Counters {
            draining: Arc::new(DrainingFlows::new(
                context.clone(),
                cluster.clone(),
                reconciler.clone(),
            )),
            backends: Arc::new(BackendFlows::new(context.clone(), reconciler.clone())),
            egress: Arc::new(EgressFlows::new(context.clone(), reconciler.clone())),
            sockets: Arc::new(Sockets::new(context.clone(), reconciler.clone())),
        };
        Arc::new(Self {
            cache: Arc::new(StateCache::new(&context)),
            host: Arc::new(HostSetup::new(of_host.0, of_host.1, of_host.2)),
            attachments: Arc::new(Attachments::new(
                context.clone(),
                cluster.clone(),
                reconciler.clone(),
            )),
            context,
            cluster,
            events,
            reconciler,
            counters,
            stop: watch::Sender::new(false),
        })
    }

    /// Asks for the end of the agent, as after [`crate::api::LocalRequest::Leave`].
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the agent is asked to end.
    pub async fn stopped(&self) {
        // The sender lives as long as the agent: an error cannot happen.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Ends all watching of events.
    pub fn end_events(&self) {
        self.events.close();
    }

    /// Sets up the host, adopts the objects of an earlier daemon, and starts to follow the
    /// managers. Returns when the maps match a state, or when no state is known yet.
    ///
    /// # Errors
    /// [`AgentError`] when the host rejects a step; this call then removes everything it made.
    pub async fn start(self: &Arc<Self>) -> Result<Tasks<D, L>, AgentError> {
        let fresh = self.context.datapath.attachments()?.is_empty()
            && self.context.links.list(OWN_PREFIX).await?.is_empty();
        let mut set = JoinSet::new();
        if let Err(error) = self.set_up(&mut set).await {
            if fresh {
                for failure in remove_from_kernel(&self.context).await.1 {
                    tracing::warn!("cleaning up after a failed start: {failure}");
                }
            }
            return Err(error);
        }
        let reporter = Arc::new(Reporter {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            reconciler: self.reconciler.clone(),
            draining: self.counters.draining.clone(),
        });
        set.spawn(self.host.clone().reconcile_loop());
        set.spawn(reporter.clone().heartbeat_loop());
        set.spawn(reporter.addresses_loop());
        set.spawn(self.counters.draining.clone().count_loop());
        set.spawn(self.cache.clone().save_loop(self.cluster.clone()));
        set.spawn(self.attachments.clone().heal_loop());
        set.spawn(self.clone().look_loop());
        set.spawn(self.clone().repair_loop());
        Ok(Tasks { agent: self.clone(), set })
    }

    async fn set_up(self: &Arc<Self>, set: &mut JoinSet<()>) -> Result<(), AgentError> {
        self.host.look_around().await?;
        let port = self.context.config.data_path_port;
        self.context.links.ensure_vxlan(VXLAN, port).await?;
        // Before anything is compiled: a container that is not known to be here would be taken
        // out of the maps.
        self.attachments.adopt_containers().await?;
        let mut states = self.cluster.states();
        set.spawn(self.cluster.clone().follow_loop());
        let live = timeout(LIVE_WITHIN, states.wait_for(Option::is_some)).await.is_ok();
        if !live && let Some(cached) = self.cache.load() {
            self.cluster.publish_cached(cached);
        }
        // Not before: without the state every name of the cluster would be unknown. When there is
        // none, other names are answered at least.
        self.context.names.answer();
        self.host.bring_up(Look::Maps).await?;
        self.attachments.attach_programs()
    }

    async fn look_loop(self: Arc<Self>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.context.conditions.note(LOOKING, self.host.look_around().await);
            self.attachments.sweep_namespaces().await;
            self.counters.egress.count().await;
            self.counters.backends.count().await;
            self.counters.sockets.look(self.attachments.namespaces()).await;
            self.host.look_for_shadowed_ports().await;
        }
    }

    async fn repair_loop(self: Arc<Self>) {
        let mut tick = interval(REPAIR_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            self.context.conditions.note(REPAIRING, self.repair().await);
        }
    }

    /// Compares maps, links and attachments with the wanted ones and repairs differences.
    pub(super) async fn repair(&self) -> Result<(), AgentError> {
        self.attachments.repair_links().await?;
        self.host.bring_up(Look::Maps).await?;
        self.attachments.attach_programs()?;
        self.attachments.serve_names().await?;
        self.attachments.remove_orphaned_links().await
    }
}
