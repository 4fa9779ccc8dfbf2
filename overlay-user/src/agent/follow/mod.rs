//! Follows the managers: subscribe first, then a snapshot, then the changes.

pub mod grace;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    agent::{Agent, attach::records, control::call, follow::grace::Doubts, lock},
    api::{ApiError, ErrorCode, Heartbeat, HeartbeatAnswer, NodeAddresses, Request},
    datapath::Datapath,
    link::Links,
    model::{ClusterState, Node, WatchEvent, reachable6},
};

/// Between two heartbeats; one more goes out whenever something was applied.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A stream that is silent for so long is dead: managers say something every half second.
const SILENCE: Duration = Duration::from_secs(5);
/// A stream that is silent for so long was cut, if perhaps not for long: the manager could not hear others
/// either, and takes no longer to call them down.
const GAP: Duration = Duration::from_millis(900);
/// First and longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The state is written to disk when it has been quiet for so long, or every so often.
const CACHE_AFTER: Duration = Duration::from_secs(1);
/// Events that are applied together when they arrive together.
const BURST: usize = 1024;

const FOLLOWING: &str = "following the managers";
const REPORTING: &str = "reporting to the managers";
const TELLING: &str = "telling the managers of the host's IPv6 addresses";
const CACHING: &str = "writing the last known state";

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Follows the managers for as long as the agent runs, with a growing wait between attempts.
    pub(in crate::agent) async fn follow_loop(self: Arc<Self>) {
        let mut wait = BACKOFF.0;
        loop {
            let error = self.follow().await;
            if self.connected.send_replace(false) {
                wait = BACKOFF.0;
            }
            self.trouble(FOLLOWING, error);
            sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// One watch from its snapshot to its end. Returns why it ended.
    async fn follow(&self) -> ApiError {
        let mut stream = match timeout(SILENCE, self.control.watch()).await {
            Ok(Ok(stream)) => stream.ready_chunks(BURST),
            Ok(Err(error)) => return error,
            Err(_) => return unavailable("the managers do not answer"),
        };
        let mut state: Option<ClusterState> = None;
        let mut doubts = Doubts::default();
        let mut heard = Instant::now();
        loop {
            let before = state.as_ref().map(|s| s.revision);
            let events = tokio::select! {
                events = timeout(SILENCE, stream.next()) => events,
                () = doubts.over() => {
                    self.publish_if(state.as_ref(), &mut doubts);
                    continue;
                }
            };
            let events = match events {
                Ok(Some(events)) => events,
                Ok(None) => return unavailable("the manager closed the stream of changes"),
                Err(_) => return unavailable("the manager has fallen silent"),
            };
            for event in events {
                if let Err(error) = event.and_then(|event| self.take_in(&mut state, event)) {
                    return error;
                }
            }
            if before.is_none() || heard.elapsed() > GAP {
                doubts = Doubts::since(&self.state());
            }
            heard = Instant::now();
            let news = state.as_ref().filter(|s| Some(s.revision) != before);
            self.publish_if(news, &mut doubts);
        }
    }

    fn publish_if(&self, state: Option<&ClusterState>, doubts: &mut Doubts) {
        if let Some(state) = state {
            let mut state = state.clone();
            doubts.amend(&mut state);
            self.publish(Arc::new(state));
        }
    }

    fn take_in(&self, state: &mut Option<ClusterState>, event: WatchEvent) -> Result<(), ApiError> {
        match event {
            WatchEvent::Snapshot(snapshot) => {
                self.check_cluster(&snapshot)?;
                *state = Some(snapshot);
                Ok(())
            }
            WatchEvent::Changes { revision, changes } => {
                let state = state.as_mut().ok_or_else(|| unavailable("changes came first"))?;
                if revision > state.revision + 1 {
                    return Err(unavailable("the stream of changes has a gap"));
                }
                if revision == state.revision + 1 {
                    changes.into_iter().for_each(|change| state.apply(change));
                    state.revision = revision;
                }
                Ok(())
            }
            WatchEvent::Alive { .. } => Ok(()),
        }
    }

    fn check_cluster(&self, snapshot: &ClusterState) -> Result<(), ApiError> {
        match &snapshot.cluster {
            Some(cluster) if cluster.id == self.config.cluster => Ok(()),
            Some(cluster) => Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "the manager is of cluster {}, this node of {}",
                    cluster.id.short(),
                    self.config.cluster.short()
                ),
            )
            .hint("leave with `overlay leave --force` and join again")),
            None => Err(unavailable("the manager has no state yet")),
        }
    }

    /// Makes a live state the current one and wakes everybody who works from it.
    fn publish(&self, state: Arc<ClusterState>) {
        self.names.show(&state);
        self.control.learn(state.nodes.values().filter_map(|n| n.api_addr).collect());
        self.state.send_replace(Some(state));
        self.connected.send_if_modified(|connected| !std::mem::replace(connected, true));
        self.overcome(FOLLOWING);
        self.wake.notify_one();
    }

    /// Works from the last known state until a manager answers.
    pub(in crate::agent) fn publish_cached(&self, cached: ClusterState) {
        if let Err(error) = self.check_cluster(&cached) {
            return tracing::warn!("the last known state is of no use: {error}");
        }
        let cached = Arc::new(cached);
        let published = self.state.send_if_modified(|state| {
            let none = state.is_none();
            state.get_or_insert_with(|| cached.clone());
            none
        });
        if published {
            tracing::warn!(revision = cached.revision, "no manager answers: using the last state");
            self.names.show(&cached);
            self.wake.notify_one();
        }
    }

    /// Tells the managers, every half second and after every apply, which revision the maps show.
    pub(in crate::agent) async fn heartbeat_loop(self: Arc<Self>) {
        let mut progress = self.progress.subscribe();
        // Not before the maps show something: a node that is heard of counts as ready. The sender
        // lives as long as the agent, so that waiting cannot fail.
        let _ = progress.wait_for(|revision| *revision > 0).await;
        loop {
            let applied = *progress.borrow_and_update();
            let draining = lock(&self.draining).clone();
            let node = self.node().clone();
            let heartbeat = Request::Heartbeat(Heartbeat { node, applied, draining });
            match call::<HeartbeatAnswer>(&*self.control, heartbeat).await {
                Ok(_) => self.overcome(REPORTING),
                Err(error) => self.trouble(REPORTING, error),
            }
            let _ = timeout(HEARTBEAT, progress.changed()).await;
        }
    }

    /// Tells the managers the host's IPv6 addresses whenever they know others. Not with the heartbeats, which
    /// must not wait for what is written.
    pub(in crate::agent) async fn addresses_loop(self: Arc<Self>) {
        let mut progress = self.progress.subscribe();
        let _ = progress.wait_for(|revision| *revision > 0).await;
        loop {
            progress.borrow_and_update();
            self.tell_addresses().await;
            let _ = timeout(HEARTBEAT, progress.changed()).await;
        }
    }

    async fn tell_addresses(&self) {
        let addresses6 = reachable6(&lock(&self.facts).addresses6);
        let state = self.state();
        if state.nodes.get(self.node()).is_none_or(|known| known.addresses6 == addresses6) {
            return;
        }
        let told = NodeAddresses { node: self.node().clone(), addresses6 };
        match call::<Node>(&*self.control, Request::NodeAddresses(told)).await {
            Ok(_) => self.overcome(TELLING),
            Err(error) => self.trouble(TELLING, error),
        }
    }

    /// Writes the state to disk when it has changed, at most every [`CACHE_AFTER`].
    pub(in crate::agent) async fn cache_loop(self: Arc<Self>) {
        let mut state = self.state.subscribe();
        while state.changed().await.is_ok() {
            sleep(CACHE_AFTER).await;
            let Some(latest) = state.borrow_and_update().clone() else { continue };
            self.cache(latest).await;
        }
    }

    /// Writes a state to disk for the next start.
    pub(in crate::agent) async fn cache(&self, state: Arc<ClusterState>) {
        let left = self.left.lock().await;
        if *left {
            return;
        }
        let path = self.paths.cached_state();
        let written = tokio::task::spawn_blocking(move || records::save_state(&path, &state)).await;
        match written {
            Ok(Ok(())) => self.overcome(CACHING),
            Ok(Err(error)) => self.trouble(CACHING, error),
            Err(panic) => self.trouble(CACHING, panic),
        }
    }
}

fn unavailable(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
}
