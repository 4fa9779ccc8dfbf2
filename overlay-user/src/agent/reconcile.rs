//! Makes the maps show the state: compile, diff against what they hold, apply.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{Agent, AgentError, compile::compile, compile::slots, lock};
use crate::{
    datapath::{Datapath, DatapathState, diff},
    link::Links,
};

/// What the reconciler remembers.
#[derive(Default)]
pub struct Applied {
    /// What the maps hold; `None` when only the maps know.
    pub known: Option<DatapathState>,
}

/// How long after a failure the reconciler tries again.
const RETRY: Duration = Duration::from_secs(1);

const RECONCILING: &str = "bringing the maps up to date";

/// Where the reconciler finds what the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// In its memory, if the last apply succeeded.
    Memory,
    /// In the maps themselves: repairs what somebody else changed.
    Maps,
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Brings the maps to the state and the facts of this moment. Without a state nothing is
    /// touched.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] names the operation that failed.
    pub(super) async fn reconcile(self: &Arc<Self>, look: Look) -> Result<(), AgentError> {
        let agent = self.clone();
        let done = tokio::task::spawn_blocking(move || agent.reconcile_now(look)).await;
        match done {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn reconcile_now(&self, look: Look) -> Result<(), AgentError> {
        let mut applied = lock(&self.applied);
        // Looked at only now that the lock is held: a later call sees a later state.
        let Some(state) = self.state.borrow().clone() else { return Ok(()) };
        let facts = lock(&self.facts).clone();
        let mut target = compile(&state, self.node(), &facts);
        if !self.config.socket_lb {
            // Known all the same: connections of before may still be there.
            target.netns.clear();
        }
        let remembered = applied.known.take();
        let drift_is_news = look == Look::Maps && remembered.is_some();
        let current = match remembered {
            Some(known) if look == Look::Memory => known,
            known => {
                let held = self.datapath.read()?;
                if let Some(known) = known.filter(|_| drift_is_news) {
                    let drift = diff(&held, &known).len();
                    if drift > 0 {
                        tracing::warn!("the maps differed from what was applied: {drift} repairs");
                    }
                }
                held
            }
        };
        // Before a new endpoint's packets are counted there.
        let fresh = slots::assign(&current.links, &mut target);
        if !fresh.is_empty() {
            self.datapath.forget(&fresh, &BTreeSet::new())?;
        }
        target.stale_backends = self.gone(&current, &target)?;
        let operations = diff(&current, &target);
        self.datapath.apply(&operations)?;
        self.forget_gone(&current, &target)?;
        self.show_slots(target.links.values());
        if !operations.is_empty() {
            tracing::debug!(revision = state.revision, writes = operations.len(), "applied");
        }
        applied.known = Some(target);
        let revision = state.revision;
        self.progress.send_if_modified(|shown| std::mem::replace(shown, revision) != revision);
        Ok(())
    }

    /// Counters of an endpoint, of a network and of a backend go with it.
    fn forget_gone(&self, old: &DatapathState, new: &DatapathState) -> Result<(), AgentError> {
        let slots = |state: &DatapathState| state.links.values().map(|l| l.slot).collect();
        let (was, is): (BTreeSet<u32>, BTreeSet<u32>) = (slots(old), slots(new));
        let slots: BTreeSet<u32> = was.difference(&is).copied().filter(|slot| *slot != 0).collect();
        let networks = old.networks.keys().copied();
        let networks: BTreeSet<u32> = networks.filter(|v| !new.networks.contains_key(v)).collect();
        if !slots.is_empty() || !networks.is_empty() {
            self.datapath.forget(&slots, &networks)?;
        }
        let backends = old.backends.keys().copied();
        let backends: BTreeSet<u32> = backends.filter(|n| !new.backends.contains_key(n)).collect();
        if !backends.is_empty() {
            self.datapath.forget_backend_stats(&backends)?;
        }
        Ok(())
    }

    /// Reconciles whenever it is woken, for as long as the agent runs. Changes that arrive while
    /// it works are done together the next time.
    pub(super) async fn reconcile_loop(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            match self.converge().await {
                Ok(()) => self.overcome(RECONCILING),
                Err(error) => {
                    self.trouble(RECONCILING, error);
                    tokio::time::sleep(RETRY).await;
                    self.wake.notify_one();
                }
            }
        }
    }

    async fn converge(self: &Arc<Self>) -> Result<(), AgentError> {
        if self.setup_is_due().await {
            self.bring_up(Look::Memory).await
        } else {
            self.reconcile(Look::Memory).await
        }
    }
}
