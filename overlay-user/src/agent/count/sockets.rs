//! Sockets that are connected to a backend in place of a VIP: looks for stale backends among them,
//! and forgets sockets that no longer exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use overlay_common::{maps::SockFlow, wire::PROTO_TCP};

use crate::{
    agent::{
        blocking::blocking, clock::monotonic_ns, compile::stale, context::Context,
        error::AgentError, reconcile::Reconciler,
    },
    datapath::{Datapath, DatapathState},
    link::Links,
    lock::lock,
};

const SWEEPING: &str = "looking for sockets that are no more";
/// How old the entry of a socket must be before its absence means anything, ns: a socket that is
/// just being connected is in no table of the kernel yet.
const SETTLED: u64 = 60_000_000_000;
/// Many sockets take a while to be listed: at most one part in so many of the time.
const SHARE: u32 = 20;
/// In how many looks the kernel is asked once which sockets there are.
const ASK_ONE_IN: u32 = 15;

/// Network namespaces by their cookies; the host's own has no path.
pub type Namespaces = BTreeMap<u64, Option<PathBuf>>;

/// When to look at the sockets again.
#[derive(Default)]
struct Schedule {
    /// `None` before the first time.
    due: Option<Instant>,
    /// How often they were looked at.
    looks: u32,
}

/// Looks at the sockets of containers and of the host.
pub struct Sockets<D, L> {
    context: Arc<Context<D, L>>,
    reconciler: Arc<Reconciler<D, L>>,
    schedule: Mutex<Schedule>,
}

impl<D: Datapath, L: Links> Sockets<D, L> {
    /// Looks at nothing yet.
    pub fn new(context: Arc<Context<D, L>>, reconciler: Arc<Reconciler<D, L>>) -> Self {
        Self { context, reconciler, schedule: Mutex::default() }
    }

    /// Asks for a reconciling when the stale backends are others than the maps say. Now and then,
    /// forgets sockets that the kernel has let go without a word. `namespaces` are all that may
    /// have sockets.
    pub async fn look(self: &Arc<Self>, namespaces: Namespaces) {
        let sockets = self.clone();
        let done = blocking(move || sockets.look_now(&namespaces)).await;
        self.context.conditions.note(SWEEPING, done);
    }

    fn look_now(&self, namespaces: &Namespaces) -> Result<(), AgentError> {
        let start = Instant::now();
        let mut schedule = lock(&self.schedule);
        if schedule.due.is_some_and(|due| start < due) {
            return Ok(());
        }
        let sockets = self.context.datapath.sockets()?;
        let changed = |held: &DatapathState| held.stale_backends != stale::backends(&sockets, held);
        if self.reconciler.applied(changed) == Some(true) {
            self.reconciler.renew_stale();
        }
        let asks = schedule.looks.is_multiple_of(ASK_ONE_IN);
        schedule.looks = schedule.looks.wrapping_add(1);
        if asks {
            self.sweep(&sockets, namespaces)?;
        }
        schedule.due = Some(Instant::now() + start.elapsed() * SHARE);
        Ok(())
    }

    /// Forgets sockets that the kernel does not have. It reports the end of none of its own
    /// sockets, as those of MPTCP's subflows and of network file systems.
    pub fn sweep(
        &self,
        sockets: &BTreeMap<u64, SockFlow>,
        namespaces: &Namespaces,
    ) -> Result<(), AgentError> {
        let now = monotonic_ns();
        let is_old =
            |flow: &SockFlow| flow.proto == PROTO_TCP && now.saturating_sub(flow.since) > SETTLED;
        let old: Vec<_> = sockets.iter().filter(|(_, flow)| is_old(flow)).collect();
        if old.is_empty() {
            return Ok(());
        }
        let asked: BTreeSet<u64> = old.iter().map(|(_, flow)| flow.netns).collect();
        let mut alive: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for netns in asked {
            let path = namespaces.get(&netns);
            // A namespace without endpoints has no connection left that works.
            let found = match path.map(|path| self.context.host.tcp_sockets(path.as_deref())) {
                Some(Ok(found)) => found,
                Some(Err(error)) => {
                    // A namespace that has just gone, or a kernel without CONFIG_INET_DIAG.
                    tracing::debug!("its sockets are taken for alive: {error}");
                    continue;
                }
                None => BTreeSet::new(),
            };
            alive.insert(netns, found);
        }
        for (cookie, flow) in old {
            if alive.get(&flow.netns).is_some_and(|alive| !alive.contains(cookie)) {
                self.context.datapath.forget_socket(*cookie)?;
            }
        }
        Ok(())
    }
}
