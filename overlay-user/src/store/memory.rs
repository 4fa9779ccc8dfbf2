//! A store in memory, for tests and experiments. Its contents end with the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast;

use super::{Commit, SecretChange, Store, StoreError};
use crate::model::{Change, ClusterState};

/// How many commits a watcher may fall behind before it must load the state again.
pub(super) const WATCH_CAPACITY: usize = 1024;

/// A [`Store`] in memory.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    commits: broadcast::Sender<Commit>,
}

#[derive(Debug, Default)]
struct Inner {
    state: ClusterState,
    secrets: BTreeMap<String, Vec<u8>>,
}

impl MemoryStore {
    /// An empty store at revision 0.
    pub fn new() -> Self {
        Self { inner: Mutex::default(), commits: broadcast::channel(WATCH_CAPACITY).0 }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock leaves no partial transaction behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn load(&self) -> Result<ClusterState, StoreError> {
        Ok(self.inner().state.clone())
    }

    fn commit(
        &self,
        expected: u64,
        changes: Vec<Change>,
        secrets: Vec<SecretChange>,
    ) -> Result<u64, StoreError> {
        let mut inner = self.inner();
        let found = inner.state.revision;
        if found != expected {
            return Err(StoreError::Conflict { expected, found });
        }
        for change in changes.iter().cloned() {
            inner.state.apply(change);
        }
        for secret in secrets {
            match secret {
                SecretChange::Put(key, value) => drop(inner.secrets.insert(key, value)),
                SecretChange::Delete(key) => drop(inner.secrets.remove(&key)),
            }
        }
        let revision = expected + 1;
        inner.state.revision = revision;
        // Sends under the lock, so that watchers see the commits in order. Sending fails if there
        // is no watcher, which is no error.
        let _ = self.commits.send(Commit { revision, changes: Arc::new(changes) });
        Ok(revision)
    }

    fn secret(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner().secrets.get(key).cloned())
    }

    fn secrets(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        Ok(self
            .inner()
            .secrets
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn watch(&self) -> broadcast::Receiver<Commit> {
        self.commits.subscribe()
    }
}
