//! The last known state on disk, so that a host without managers keeps forwarding.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::sleep};

use super::Cluster;
use crate::{
    agent::{conditions::Conditions, context::Context, json_file},
    model::ClusterState,
};

/// The state is written this long after it has changed, together with later changes.
const CACHE_AFTER: Duration = Duration::from_secs(1);

const CACHING: &str = "writing the last known state";

/// `last-state.json`.
pub struct StateCache {
    path: PathBuf,
    conditions: Arc<Conditions>,
    /// Held while the file is written; true once this node has left and nothing may be written.
    closed: Mutex<bool>,
}

impl StateCache {
    /// The cache of a host.
    pub fn new<D, L>(context: &Context<D, L>) -> Self {
        let (path, conditions) = (context.paths.cached_state(), context.conditions.clone());
        Self { path, conditions, closed: Mutex::default() }
    }

    /// The last known state, if there is a readable one: a damaged cache is as good as none.
    pub fn load(&self) -> Option<ClusterState> {
        json_file::read(&self.path, "it is written anew").unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        })
    }

    /// Writes a state for the next start.
    pub async fn save(&self, state: Arc<ClusterState>) {
        let closed = self.closed.lock().await;
        if *closed {
            return;
        }
        let path = self.path.clone();
        let write = move || json_file::write(&path, &*state);
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => self.conditions.note(CACHING, written),
            Err(panic) => self.conditions.fail(CACHING, panic),
        }
    }

    /// Writes nothing from now on: the node leaves its cluster.
    pub async fn close(&self) {
        *self.closed.lock().await = true;
    }

    /// Writes the state when it has changed, at most every [`CACHE_AFTER`].
    pub async fn save_loop(self: Arc<Self>, cluster: Arc<Cluster>) {
        let mut states = cluster.states();
        while states.changed().await.is_ok() {
            sleep(CACHE_AFTER).await;
            let Some(latest) = states.borrow_and_update().clone() else { continue };
            self.save(latest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::TestCluster;

    #[tokio::test]
    async fn the_cached_state_reads_back_and_a_damaged_one_is_no_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("last-state.json");
        let cache =
            StateCache { path: path.clone(), conditions: Arc::default(), closed: Mutex::default() };
        assert_eq!(cache.load(), None);
        let state = TestCluster::with_nodes(2).state;
        cache.save(Arc::new(state.clone())).await;
        assert_eq!(cache.load(), Some(state.clone()));
        std::fs::write(&path, "{").expect("written");
        assert_eq!(cache.load(), None);
        cache.close().await;
        cache.save(Arc::new(state)).await;
        assert_eq!(cache.load(), None, "nothing is written any more");
    }
}
