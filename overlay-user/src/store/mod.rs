//! Where managers keep the cluster's state.

pub mod memory;
pub mod redb;
#[cfg(test)]
mod suite;

use std::sync::Arc;

pub use memory::MemoryStore;
pub use redb::RedbStore;

use tokio::sync::broadcast;

use crate::model::{Change, ClusterState};

/// What a store keeps besides the state that agents may see.
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
    /// Revision after it.
    pub revision: u64,
    /// What it wrote.
    pub changes: Arc<Vec<Change>>,
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote first: read again and decide again.
    #[error("the state changed in between: it is at revision {found}, not {expected}")]
    Conflict {
        /// Revision the transaction was made for.
        expected: u64,
        /// Revision found.
        found: u64,
    },
    /// The file is not ours or is damaged.
    #[error(
        "the state file {path} is damaged: {reason}; restore it from a backup, or move it away \
             and run `overlay init` for a new cluster"
    )]
    Corrupt {
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by a newer version.
    #[error(
        "the state file {path} has format {found}, this version reads up to {supported}; \
             install the newer version again"
    )]
    Format {
        /// Which file.
        path: String,
        /// Its format.
        found: u32,
        /// Ours.
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
    /// The whole state at its current revision.
    ///
    /// # Errors
    /// [`StoreError`] when the backend fails or holds what is not ours.
    fn load(&self) -> Result<ClusterState, StoreError>;

    /// Commits all changes, or none if the store is not at revision `expected` any more. Returns
    /// the new revision; when it returns, the changes survive a crash.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when somebody else wrote first.
    fn commit(
        &self,
        expected: u64,
        changes: Vec<Change>,
        secrets: Vec<SecretChange>,
    ) -> Result<u64, StoreError>;

    /// The secret under a key.
    ///
    /// # Errors
    /// [`StoreError`] when the backend fails.
    fn secret(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// All secrets whose key starts with `prefix`, in the order of the keys.
    ///
    /// # Errors
    /// [`StoreError`] when the backend fails.
    fn secrets(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Commits from now on. A receiver that lags loads again.
    fn watch(&self) -> broadcast::Receiver<Commit>;
}
