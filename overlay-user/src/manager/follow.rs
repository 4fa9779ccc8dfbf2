//! Watch streams.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Interval, MissedTickBehavior, interval},
};

use super::shared::{Applied, Shared};
use crate::{
    model::{Change, ClusterState, WatchEvent},
    store::Commit,
};

/// Interval of the signs of life on a stream.
const ALIVE: Duration = Duration::from_millis(500);

/// A [`WatchEvent`] that shares its contents with the other watchers.
pub(super) enum Followed {
    Snapshot(Arc<ClusterState>),
    Changes(Commit),
    Alive(u64),
}

/// [`WatchEvent`] as it is sent, with borrowed contents.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Snapshot(&'a ClusterState),
    Changes { revision: u64, changes: &'a [Change] },
    Alive { revision: u64 },
}

impl Followed {
    /// Encodes the event as one JSON line. All snapshots of one revision share it.
    pub fn to_line(&self, shared: &Shared) -> Result<Bytes, serde_json::Error> {
        match self {
            Self::Snapshot(state) => shared.snapshot(state, || self.write_line()),
            Self::Changes(_) | Self::Alive(_) => self.write_line().map(Bytes::from),
        }
    }

    fn write_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(&match self {
            Self::Snapshot(state) => Line::Snapshot(state),
            Self::Changes(commit) => {
                Line::Changes { revision: commit.revision, changes: &commit.changes }
            }
            Self::Alive(revision) => Line::Alive { revision: *revision },
        })?;
        line.push(b'\n');
        Ok(line)
    }

    /// Converts to an event that owns its contents.
    pub fn into_event(self) -> WatchEvent {
        match self {
            Self::Snapshot(state) => WatchEvent::Snapshot(Arc::unwrap_or_clone(state)),
            Self::Changes(commit) => WatchEvent::Changes {
                revision: commit.revision,
                changes: Arc::unwrap_or_clone(commit.changes),
            },
            Self::Alive(revision) => WatchEvent::Alive { revision },
        }
    }
}

struct Follower {
    shared: Weak<Shared>,
    commits: broadcast::Receiver<Applied>,
    /// Revision that the watcher has; `None` if it needs a snapshot.
    known: Option<u64>,
    alive: Interval,
}

/// Returns a stream of the state and its changes. It ends with the manager.
pub(super) fn follow(
    shared: &Arc<Shared>,
) -> impl Stream<Item = Followed> + Send + 'static + use<> {
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Subscribes before it takes the snapshot, so that it misses no commit in between.
    let commits = shared.subscribe();
    let follower = Follower { shared: Arc::downgrade(shared), commits, known: None, alive };
    stream::unfold(follower, |mut follower| async move {
        let followed = follower.next().await?;
        Some((followed, follower))
    })
}

impl Follower {
    async fn next(&mut self) -> Option<Followed> {
        loop {
            let Some(known) = self.known else {
                let state = self.shared.upgrade()?.state();
                self.known = Some(state.revision);
                self.alive.reset();
                return Some(Followed::Snapshot(state));
            };
            tokio::select! {
                biased;
                commit = self.commits.recv() => match commit {
                    Ok(Applied::Commit(commit)) if commit.revision <= known => {}
                    Ok(Applied::Commit(commit)) if commit.revision == known + 1 => {
                        self.known = Some(commit.revision);
                        return Some(Followed::Changes(commit));
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => self.known = None,
                    Err(RecvError::Closed) => return None,
                },
                _ = self.alive.tick() => return Some(Followed::Alive(known)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Id, Kind};

    #[test]
    fn a_line_is_the_event_as_others_would_write_it() {
        let state = ClusterState { revision: 7, ..Default::default() };
        let changes = vec![Change::Delete { kind: Kind::Node, id: Id::from_text("n1") }];
        for followed in [
            Followed::Snapshot(Arc::new(state)),
            Followed::Changes(Commit { revision: 8, changes: Arc::new(changes) }),
            Followed::Alive(9),
        ] {
            let line = followed.write_line().expect("JSON");
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            let read: WatchEvent = serde_json::from_slice(&line).expect("a watch event");
            assert_eq!(read, followed.into_event());
        }
    }
}
