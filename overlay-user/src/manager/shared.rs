//! The state in memory, kept equal to the store's, and the one place where it is written.

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

/// How often a mutation is decided anew when other managers keep writing first.
const ATTEMPTS: usize = 32;
/// How many commits a watcher may fall behind before it gets a new snapshot.
const BACKLOG: usize = 4096;

/// What watchers are told.
#[derive(Clone)]
pub(super) enum Applied {
    /// The state shows a commit.
    Commit(Commit),
    /// The state was loaded as a whole, past commits that nobody told us of.
    Reloaded,
}

/// What the manager's calls, its server and its background duties share.
pub(super) struct Shared {
    pub store: Arc<dyn Store>,
    pub liveness: Liveness,
    state: RwLock<Arc<ClusterState>>,
    /// What the store committed and the state does not show yet. Held while it is applied.
    commits: Mutex<broadcast::Receiver<Commit>>,
    /// What the state shows, for watchers.
    applied: broadcast::Sender<Applied>,
    /// The last snapshot on the wire with its revision: after a restart all nodes ask for the same.
    snapshot: Mutex<Option<(u64, Bytes)>>,
    /// Held while a mutation is decided and committed, so that this manager's own mutations do
    /// not make each other start again.
    writing: Mutex<()>,
}

impl Shared {
    pub fn open(store: Arc<dyn Store>) -> Result<Self, ApiError> {
        // Subscribed first, so that no commit is missed in between.
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

    /// Commits from now on, each sent when the state shows it.
    pub fn subscribe(&self) -> broadcast::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// What `make` writes of a state, made once per revision.
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

    /// Decides and commits, again and again while somebody else writes first. The state shows the
    /// commit when this returns. Blocks.
    pub fn write<T>(
        &self,
        plan: impl Fn(&ClusterState, Timestamp) -> Planned<T>,
    ) -> Result<T, ApiError> {
        let _writing = lock(&self.writing);
        for _ in 0..ATTEMPTS {
            let state = self.state();
            let (plan, answer) = plan(&state, Timestamp::now())?;
            let revision = state.revision;
            // Given back before the state is changed, which would otherwise have to copy it.
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

    /// Applies what the store committed; afterwards the state is at least at `revision`.
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
        // Copies the state only while a reader holds it.
        let writable = Arc::make_mut(&mut state);
        for change in commit.changes.iter().cloned() {
            writable.apply(change);
        }
        writable.revision = commit.revision;
        drop(state);
        // Nobody watching is no error.
        let _ = self.applied.send(Applied::Commit(commit));
        Ok(())
    }

    /// Takes the state from the store.
    fn reload(&self) -> Result<(), ApiError> {
        let loaded = self.store.load()?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        let _ = self.applied.send(Applied::Reloaded);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under any of these locks leaves nothing half-done: the state is taken from the
    // store's commits, each in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cluster's authority, from the secrets.
pub(super) fn authority(store: &dyn Store) -> Result<Authority, ApiError> {
    let secret = store.secret(CA_KEY)?.ok_or_else(|| {
        internal("the store holds no certificate authority").hint("restore it from a backup")
    })?;
    serde_json::from_slice(&secret).map_err(|e| {
        internal(format!("the certificate authority in the store is damaged: {e}"))
            .hint("restore the store from a backup")
    })
}

/// Applies what others commit to the store, until the manager is gone.
pub(super) fn spawn_follower(shared: &Arc<Shared>) {
    let mut commits = shared.store.watch();
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            if let Err(broadcast::error::RecvError::Closed) = commits.recv().await {
                return;
            }
            let Some(shared) = Weak::upgrade(&shared) else { return };
            // Our own commits are applied by now; only others' leave something to do here.
            let caught_up = tokio::task::spawn_blocking(move || shared.catch_up(0)).await;
            if let Ok(Err(e)) = caught_up {
                tracing::error!("following the store: {e}");
            }
        }
    });
}
