//! The state in memory, which follows the store, and the only place that writes to the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::broadcast::{self, error::TryRecvError};

use super::{
    error::{internal, unavailable},
    liveness::Liveness,
    plan::{Planned, init::CA_KEY},
};
use crate::{
    api::ApiError,
    model::ClusterState,
    pki::Authority,
    store::{Commit, Store, StoreError},
};

/// How often a mutation is decided again while other managers keep committing first.
const ATTEMPTS: usize = 32;
/// How many commits a watcher may fall behind before it gets a new snapshot.
const BACKLOG: usize = 4096;

/// A message to the watchers.
#[derive(Clone)]
pub(super) enum Applied {
    /// The state now includes a commit.
    Commit(Commit),
    /// The state was loaded as a whole, because some commits were missed.
    Reloaded,
}

/// The data that the manager's calls, its server and its background tasks share.
pub(super) struct Shared {
    pub store: Arc<dyn Store>,
    pub liveness: Liveness,
    state: RwLock<Arc<ClusterState>>,
    /// Commits of the store that the state does not include yet. Locked while they are applied.
    commits: Mutex<broadcast::Receiver<Commit>>,
    /// Changes that the state includes, for the watchers.
    applied: broadcast::Sender<Applied>,
    /// The last encoded snapshot and its revision. After a restart all nodes ask for the same
    /// snapshot.
    snapshot: Mutex<Option<(u64, Bytes)>>,
    /// Locked while a mutation is decided and committed, so that this manager's own mutations do
    /// not conflict with each other.
    writing: Mutex<()>,
}

impl Shared {
    pub fn open(store: Arc<dyn Store>) -> Result<Self, ApiError> {
        // Subscribes before it loads the state, so that it misses no commit in between.
        let commits = store.watch();
        let state = store.load()?;
        if state.cluster.is_none() {
            return Err(internal("the store holds no cluster")
                .hint("make one with `overlay init`, or join one with `overlay join`"));
        }
        authority(&*store)?;
        Ok(Self {
            store,
            liveness: Liveness::new(),
            state: RwLock::new(Arc::new(state)),
            commits: Mutex::new(commits),
            applied: broadcast::channel(BACKLOG).0,
            snapshot: Mutex::default(),
            writing: Mutex::new(()),
        })
    }

    pub fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the commits from now on. Each one is sent as soon as the state includes it.
    pub fn subscribe(&self) -> broadcast::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// Returns the output of `make` for a state. It is made once per revision.
    pub fn snapshot<E>(
        &self,
        state: &ClusterState,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Bytes, E> {
        let mut snapshot = lock(&self.snapshot);
        if let Some((revision, bytes)) = &*snapshot
            && *revision == state.revision
        {
            return Ok(bytes.clone());
        }
        let bytes = Bytes::from(make()?);
        *snapshot = Some((state.revision, bytes.clone()));
        Ok(bytes)
    }

    /// Decides a mutation and commits it, and repeats this while another writer commits first. When
    /// this returns, the state includes the commit. Blocks.
    pub fn write<T>(
        &self,
        plan: impl Fn(&ClusterState, Timestamp) -> Planned<T>,
    ) -> Result<T, ApiError> {
        let _writing = lock(&self.writing);
        for _ in 0..ATTEMPTS {
            let state = self.state();
            let (plan, answer) = plan(&state, Timestamp::now())?;
            let revision = state.revision;
            // Drops the reference before the state changes, which would otherwise have to copy the
            // state.
            drop(state);
            if plan.is_empty() {
                return Ok(answer);
            }
            match self.store.commit(revision, plan.changes, plan.secrets) {
                Ok(revision) => {
                    self.catch_up(revision)?;
                    return Ok(answer);
                }
                Err(StoreError::Conflict { found, .. }) => self.catch_up(found)?,
                Err(e) => return Err(e.into()),
            }
        }
        Err(unavailable("the cluster's state is written to too often by other managers")
            .hint("try again"))
    }

    /// Applies the commits of the store. Afterwards the state is at least at `revision`.
    pub fn catch_up(&self, revision: u64) -> Result<(), ApiError> {
        let mut commits = lock(&self.commits);
        loop {
            match commits.try_recv() {
                Ok(commit) => self.apply(commit)?,
                Err(TryRecvError::Lagged(_)) => self.reload()?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if self.state().revision < revision { self.reload() } else { Ok(()) }
    }

    fn apply(&self, commit: Commit) -> Result<(), ApiError> {
        let current = self.state().revision;
        if commit.revision <= current {
            return Ok(());
        }
        if commit.revision != current + 1 {
            return self.reload();
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Copies the state only if a reader holds it.
        let writable = Arc::make_mut(&mut state);
        for change in commit.changes.iter().cloned() {
            writable.apply(change);
        }
        writable.revision = commit.revision;
        drop(state);
        // Sending fails if there is no watcher, which is no error.
        let _ = self.applied.send(Applied::Commit(commit));
        Ok(())
    }

    /// Loads the whole state from the store.
    fn reload(&self) -> Result<(), ApiError> {
        let loaded = self.store.load()?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        let _ = self.applied.send(Applied::Reloaded);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks leaves no partial change: the state is built from the
    // commits of the store, each in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the cluster's authority from the secrets.
pub(super) fn authority(store: &dyn Store) -> Result<Authority, ApiError> {
    let secret = store.secret(CA_KEY)?.ok_or_else(|| {
        internal("the store holds no certificate authority").hint("restore it from a backup")
    })?;
    serde_json::from_slice(&secret).map_err(|e| {
        internal(format!("the certificate authority in the store is damaged: {e}"))
            .hint("restore the store from a backup")
    })
}

/// Applies commits of other writers to the state, until the manager is gone.
pub(super) fn spawn_follower(shared: &Arc<Shared>) {
    let mut commits = shared.store.watch();
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            if let Err(broadcast::error::RecvError::Closed) = commits.recv().await {
                return;
            }
            let Some(shared) = Weak::upgrade(&shared) else { return };
            // Our own commits are already applied, so this has work only after commits of other
            // writers.
            let caught_up = tokio::task::spawn_blocking(move || shared.catch_up(0)).await;
            if let Ok(Err(e)) = caught_up {
                tracing::error!("following the store: {e}");
            }
        }
    });
}
