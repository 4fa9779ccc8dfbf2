//! Makes the maps match the state: compile, diff against their contents, apply.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use super::{
    blocking::blocking,
    compile::{LocalFacts, compile, slots, stale},
    context::Context,
    error::AgentError,
    events::Hub,
    follow::Cluster,
};
use crate::{
    datapath::{Datapath, DatapathState, diff},
    link::Links,
    lock::lock,
};

/// Where the reconciler finds the contents of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// In its memory, if the last apply succeeded.
    Memory,
    /// In the maps themselves: this repairs changes by another program.
    Maps,
}

/// Keeps the maps as the cluster's state and the facts of this host want them.
pub struct Reconciler<D, L> {
    context: Arc<Context<D, L>>,
    cluster: Arc<Cluster>,
    events: Arc<Hub<D, L>>,
    facts: Mutex<LocalFacts>,
    /// The contents of the maps; `None` when they must be read first.
    applied: Mutex<Option<DatapathState>>,
    /// Whether to look for addresses of stale backends.
    stale_due: AtomicBool,
    /// Revision that the maps show.
    progress: watch::Sender<u64>,
    wake: Notify,
}

impl<D: Datapath, L: Links> Reconciler<D, L> {
    /// Touches nothing before [`Reconciler::reconcile`].
    pub fn new(context: Arc<Context<D, L>>, cluster: Arc<Cluster>, events: Arc<Hub<D, L>>) -> Self {
        Self {
            context,
            cluster,
            events,
            facts: Mutex::default(),
            applied: Mutex::default(),
            // Backends may have gone while no daemon ran.
            stale_due: AtomicBool::new(true),
            progress: watch::Sender::new(0),
            wake: Notify::new(),
        }
    }

    /// The facts about this host, besides the cluster's state. The next reconciliation applies a
    /// change.
    pub fn facts(&self) -> MutexGuard<'_, LocalFacts> {
        lock(&self.facts)
    }

    /// Looks at the contents of the maps; `None` when they must be read first.
    pub fn applied<T>(&self, look: impl FnOnce(&DatapathState) -> T) -> Option<T> {
        lock(&self.applied).as_ref().map(look)
    }

    /// The revision that the maps show, and every change of it.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Asks for a reconciling soon.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until a reconciling is asked for.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Asks for a reconciling that looks for addresses of stale backends.
    pub fn renew_stale(&self) {
        self.stale_due.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Brings the maps to the state and the facts of this moment. Without a state nothing is
    /// touched.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] names the operation that failed.
    pub async fn reconcile(self: &Arc<Self>, look: Look) -> Result<(), AgentError> {
        let reconciler = self.clone();
        blocking(move || reconciler.reconcile_now(look)).await
    }

    fn reconcile_now(&self, look: Look) -> Result<(), AgentError> {
        let datapath = &self.context.datapath;
        let mut applied = lock(&self.applied);
        // Only now that the lock is held: a later call sees a later state.
        let Some(state) = self.cluster.known_state() else { return Ok(()) };
        let facts = self.facts().clone();
        let mut target = compile(&state, self.context.node(), &facts);
        if !self.context.config.socket_lb {
            // The cookies are known all the same: earlier connections may still be there.
            target.netns.clear();
        }
        let current = self.current(applied.take(), look)?;
        // Before a new endpoint's packets are counted there.
        let fresh = slots::assign(&current.links, &mut target);
        if !fresh.is_empty() {
            datapath.forget(&fresh, &BTreeSet::new())?;
        }
        self.add_stale(&current, &mut target)?;
        let operations = diff(&current, &target);
        datapath.apply(&operations)?;
        self.forget_removed(&current, &target)?;
        self.events.show_counters(target.links.values());
        if !operations.is_empty() {
            tracing::debug!(revision = state.revision, writes = operations.len(), "applied");
        }
        *applied = Some(target);
        let revision = state.revision;
        self.progress.send_if_modified(|shown| std::mem::replace(shown, revision) != revision);
        Ok(())
    }

    /// The contents of the maps, to which `remembered` was applied last.
    fn current(
        &self,
        remembered: Option<DatapathState>,
        look: Look,
    ) -> Result<DatapathState, AgentError> {
        let remembered = match remembered {
            Some(remembered) if look == Look::Memory => return Ok(remembered),
            remembered => remembered,
        };
        let held = self.context.datapath.read()?;
        let drift = remembered.map_or(0, |remembered| diff(&held, &remembered).len());
        if drift > 0 {
            tracing::warn!("the maps differed from what was applied: {drift} repairs");
        }
        Ok(held)
    }

    /// Adds the addresses of stale backends that sockets are connected to. A backend to which no
    /// socket is connected is not looked for.
    fn add_stale(
        &self,
        current: &DatapathState,
        target: &mut DatapathState,
    ) -> Result<(), AgentError> {
        let due = self.stale_due.swap(false, Ordering::Relaxed);
        let removed = current.backends.keys().any(|n| !target.backends.contains_key(n));
        if due || removed || !current.stale_backends.is_empty() {
            target.stale_backends = stale::backends(&self.context.datapath.sockets()?, target);
        }
        Ok(())
    }

    /// Removes the counters of endpoints, networks and backends that are removed.
    fn forget_removed(&self, old: &DatapathState, new: &DatapathState) -> Result<(), AgentError> {
        let slots = |state: &DatapathState| state.links.values().map(|l| l.counter).collect();
        let (was, is): (BTreeSet<u32>, BTreeSet<u32>) = (slots(old), slots(new));
        let slots: BTreeSet<u32> =
            was.difference(&is).copied().filter(|counter| *counter != 0).collect();
        let networks = old.networks.keys().copied();
        let networks: BTreeSet<u32> = networks.filter(|v| !new.networks.contains_key(v)).collect();
        if !slots.is_empty() || !networks.is_empty() {
            self.context.datapath.forget(&slots, &networks)?;
        }
        let backends = old.backends.keys().copied();
        let backends: BTreeSet<u32> = backends.filter(|n| !new.backends.contains_key(n)).collect();
        if !backends.is_empty() {
            self.context.datapath.forget_backend_stats(&backends)?;
        }
        Ok(())
    }
}
