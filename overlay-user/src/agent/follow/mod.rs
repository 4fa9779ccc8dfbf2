//! Follows the managers: subscribe first, then a snapshot, then the changes.

mod cache;
mod grace;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

pub use self::cache::StateCache;
use self::grace::Grace;
use super::{conditions::Conditions, context::Context, control::Control, platform::NameServers};
use crate::{
    api::{ApiError, ErrorCode},
    model::{ClusterState, Id, WatchEvent},
};

/// A stream that is silent for so long is dead: managers say something every half second.
const SILENCE: Duration = Duration::from_secs(5);
/// A stream that is silent for so long was cut, even if it goes on: the manager could not hear the
/// other nodes either, and declares them down within this time.
const GAP: Duration = Duration::from_millis(900);
/// First and longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Events that are applied together when they arrive together.
const BURST: usize = 1024;

const FOLLOWING: &str = "following the managers";

/// The cluster as the managers describe it.
pub struct Cluster {
    id: Id,
    control: Arc<dyn Control>,
    names: Arc<dyn NameServers>,
    conditions: Arc<Conditions>,
    /// The last known state, from a manager or from the cache.
    state: watch::Sender<Option<Arc<ClusterState>>>,
    /// Whether a watch is running, that is, whether the state is live.
    connected: watch::Sender<bool>,
}

impl Cluster {
    /// No state is known before [`Cluster::follow_loop`] or [`Cluster::publish_cached`].
    pub fn new<D, L>(context: &Context<D, L>) -> Self {
        Self {
            id: context.config.cluster.clone(),
            control: context.control.clone(),
            names: context.names.clone(),
            conditions: context.conditions.clone(),
            state: watch::Sender::new(None),
            connected: watch::Sender::new(false),
        }
    }

    /// The last known state; an empty one before any is known.
    pub fn state(&self) -> Arc<ClusterState> {
        self.known_state().unwrap_or_default()
    }

    /// The last known state.
    pub fn known_state(&self) -> Option<Arc<ClusterState>> {
        self.state.borrow().clone()
    }

    /// The state, if it comes from a manager that answers.
    pub fn live_state(&self) -> Option<Arc<ClusterState>> {
        if self.is_connected() { self.known_state() } else { None }
    }

    /// Whether a manager answers.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// The states to come. The sender lives as long as the agent.
    pub fn states(&self) -> watch::Receiver<Option<Arc<ClusterState>>> {
        self.state.subscribe()
    }

    /// Every change of [`Cluster::is_connected`].
    pub fn connections(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Follows the managers for as long as the agent runs, with a growing wait between attempts.
    pub async fn follow_loop(self: Arc<Self>) {
        let mut wait = BACKOFF.0;
        loop {
            let error = self.follow().await;
            if self.connected.send_replace(false) {
                wait = BACKOFF.0;
            }
            self.conditions.fail(FOLLOWING, error);
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
        let mut grace = Grace::default();
        let mut heard = Instant::now();
        loop {
            let before = state.as_ref().map(|s| s.revision);
            let events = tokio::select! {
                events = timeout(SILENCE, stream.next()) => events,
                () = grace.over() => {
                    self.publish_if(state.as_ref(), &mut grace);
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
                grace = Grace::since(&self.state());
            }
            heard = Instant::now();
            let news = state.as_ref().filter(|s| Some(s.revision) != before);
            self.publish_if(news, &mut grace);
        }
    }

    fn publish_if(&self, state: Option<&ClusterState>, grace: &mut Grace) {
        if let Some(state) = state {
            let mut state = state.clone();
            grace.amend(&mut state);
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
            Some(cluster) if cluster.id == self.id => Ok(()),
            Some(cluster) => Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "the manager is of cluster {}, this node of {}",
                    cluster.id.short(),
                    self.id.short()
                ),
            )
            .hint("leave with `overlay leave --force` and join again")),
            None => Err(unavailable("the manager has no state yet")),
        }
    }

    /// Makes a live state the current one, for every part that waits for states.
    fn publish(&self, state: Arc<ClusterState>) {
        self.names.show(&state);
        self.control.learn(state.nodes.values().filter_map(|n| n.api_addr).collect());
        self.state.send_replace(Some(state));
        self.connected.send_if_modified(|connected| !std::mem::replace(connected, true));
        self.conditions.clear(FOLLOWING);
    }

    /// Works from the last known state until a manager answers.
    pub fn publish_cached(&self, cached: ClusterState) {
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
        }
    }
}

fn unavailable(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
}
