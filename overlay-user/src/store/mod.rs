//! The store where managers keep the cluster's state.

pub mod memory;
pub mod redb;
#[cfg(test)]
mod suite;

use std::sync::Arc;

pub use memory::MemoryStore;
pub use redb::RedbStore;

use tokio::sync::broadcast;

use crate::model::{Change, ClusterState};

/// A write to the secrets, which the store keeps beside the state that agents may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretChange {
    /// Create or replace the secret under a key (`ca`, `token/ID`).
    Put(String, Vec<u8>),
    /// Remove it.
    Delete(String),
}

/// A committed transaction, as watchers see it.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Revision after the transaction.
    pub revision: u64,
    /// The changes of the transaction.
    pub changes: Arc<Vec<Change>>,
}

/// Reason for which the store rejected a call or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another writer committed first. The caller must read and decide again.
    #[error("the state changed in between: it is at revision {found}, not {expected}")]
    Conflict {
        /// Revision the transaction was made for.
        expected: u64,
        /// Revision found.
        found: u64,
    },
    /// The file is no state file or is damaged.
    #[error(
        "the state file {path} is damaged: {reason}; restore it from a backup, or move it away \
             and run `overlay init` for a new cluster"
    )]
    Corrupt {
        /// Path of the file.
        path: String,
        /// The damage that was found.
        reason: String,
    },
    /// The file was written by a newer version.
    #[error(
        "the state file {path} has format {found}, this version reads up to {supported}; \
             install the newer version again"
    )]
    Format {
        /// Path of the file.
        path: String,
        /// Format of the file.
        found: u32,
        /// Newest format that this version can read.
        supported: u32,
    },
    /// Another process has it open.
    #[error("the state file {0} is in use by another overlay daemon; stop that one first")]
    Locked(String),
    /// The disk or the server failed.
    #[error("the store failed: {0}")]
    Backend(String),
}

/// A store with compare-and-swap on one revision that grows by one with every transaction.
pub trait Store: Send + Sync + 'static {
    /// Returns the whole state at its current revision.
    ///
    /// # Errors
    /// [`StoreError`] if the backend fails or holds unknown data.
    fn load(&self) -> Result<ClusterState, StoreError>;

    /// Commits all changes, or none of them if the store is no longer at revision `expected`.
    /// Returns the new revision. The changes survive a crash once this has returned.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another writer committed first.
    fn commit(
        &self,
        expected: u64,
        changes: Vec<Change>,
        secrets: Vec<SecretChange>,
    ) -> Result<u64, StoreError>;

    /// Returns the secret under a key.
    ///
    /// # Errors
    /// [`StoreError`] if the backend fails.
    fn secret(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns all secrets with keys that start with `prefix`, in the order of the keys.
    ///
    /// # Errors
    /// [`StoreError`] if the backend fails.
    fn secrets(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Returns the commits from now on. A receiver that lags must load the state again.
    fn watch(&self) -> broadcast::Receiver<Commit>;
}
