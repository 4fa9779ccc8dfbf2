//! The flows of backends, by which least connections go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use overlay_common::{
    flow::is_expired,
    maps::{
        BACKEND_COUNTED, CONNTRACK_FORWARD, Conntrack, ConntrackKey, TCP_SEEN_FIN, TCP_SEEN_RST,
    },
};

use super::by_backend;
use crate::{
    agent::{
        blocking::blocking, clock::monotonic_ns, context::Context, error::AgentError,
        reconcile::Reconciler,
    },
    datapath::{Datapath, DatapathState},
    link::Links,
    lock::lock,
};

const COUNTING: &str = "counting flows of services that balance by them";
/// A full conntrack takes a while to be listed: at most one part in so many of the time.
const SHARE: u32 = 20;

/// Corrects the programs' own counts.
pub struct BackendFlows<D, L> {
    context: Arc<Context<D, L>>,
    reconciler: Arc<Reconciler<D, L>>,
    /// When flows may be counted again; `None` before the first time.
    due: Mutex<Option<Instant>>,
}

impl<D: Datapath, L: Links> BackendFlows<D, L> {
    /// Counts nothing yet.
    pub fn new(context: Arc<Context<D, L>>, reconciler: Arc<Reconciler<D, L>>) -> Self {
        Self { context, reconciler, due: Mutex::default() }
    }

    /// Corrects the programs' counts, which miss the flows that end without a packet.
    pub async fn count(self: &Arc<Self>) {
        let counter = self.clone();
        // A full table takes a while to be listed.
        let done = blocking(move || counter.count_now()).await;
        self.context.conditions.note(COUNTING, done);
    }

    /// # Errors
    /// [`AgentError::Datapath`] when a map cannot be read or written.
    fn count_now(&self) -> Result<(), AgentError> {
        let counted = |held: &DatapathState| {
            held.backends.values().any(|backend| backend.flags & BACKEND_COUNTED != 0)
        };
        if self.reconciler.applied(counted) != Some(true) {
            return Ok(());
        }
        let start = Instant::now();
        if lock(&self.due).is_some_and(|due| start < due) {
            return Ok(());
        }
        let datapath = &self.context.datapath;
        let before = datapath.active()?;
        let entries = datapath.conntrack(self.context.conntrack_size())?;
        let mut live = open_flows(&entries, monotonic_ns());
        for (backend, flows) in by_backend(&datapath.sockets()?) {
            *live.entry(backend).or_default() += flows;
        }
        for (backend, after) in datapath.active()? {
            let flows = corrected(
                before.get(&backend).copied().unwrap_or_default(),
                after,
                live.get(&backend).copied().unwrap_or_default(),
            );
            if flows != after {
                datapath.set_active(backend, flows)?;
            }
        }
        *lock(&self.due) = Some(Instant::now() + start.elapsed() * SHARE);
        Ok(())
    }
}

/// The live flows, as they stand in a listing, and those that began during it.
fn corrected(before: u32, after: u32, live: u32) -> u32 {
    live.saturating_add(after.saturating_sub(before))
}

/// How many flows to each backend are live and not ended by their client.
fn open_flows(entries: &[(ConntrackKey, Conntrack)], now: u64) -> BTreeMap<u32, u32> {
    let mut flows = BTreeMap::new();
    for (key, entry) in entries {
        let is_open = entry.action == CONNTRACK_FORWARD
            && entry.backend != 0
            && entry.flags & (TCP_SEEN_FIN | TCP_SEEN_RST) == 0
            && !is_expired(key, entry, now);
        if is_open {
            *flows.entry(entry.backend).or_default() += 1;
        }
    }
    flows
}

#[cfg(test)]
mod tests {
    use overlay_common::{flow, maps::CONNTRACK_REPLY, wire::PROTO_TCP};

    use super::*;

    #[test]
    fn open_flows_are_live_ones_of_the_clients_direction() {
        const NOW: u64 = 10_000 * 1_000_000_000;
        let key = ConntrackKey { proto: PROTO_TCP, ..ConntrackKey::default() };
        let entry = |backend, action, state, age| {
            (
                key,
                Conntrack {
                    backend,
                    action,
                    flags: state,
                    last_seen: NOW - age,
                    ..Conntrack::default()
                },
            )
        };
        let flows = open_flows(
            &[
                entry(1, CONNTRACK_FORWARD, 0, 0),
                entry(1, CONNTRACK_FORWARD, 0, flow::TCP_OPENING + 1),
                entry(1, CONNTRACK_FORWARD, TCP_SEEN_FIN, 0),
                entry(1, CONNTRACK_REPLY, 0, 0),
                entry(2, CONNTRACK_FORWARD, 0, 0),
                entry(0, CONNTRACK_FORWARD, 0, 0),
            ],
            NOW,
        );
        assert_eq!(flows, BTreeMap::from([(1, 1), (2, 1)]));
    }

    #[test]
    fn flows_that_begin_during_the_count_are_added() {
        assert_eq!(corrected(9, 9, 5), 5);
        assert_eq!(corrected(9, 12, 5), 8);
        assert_eq!(corrected(9, 7, 5), 5, "some have ended meanwhile");
    }
}
