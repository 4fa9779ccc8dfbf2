//! The mutations of the state, as pure functions from state and request to changes. There is one
//! file per kind of object.

pub(super) mod draft;
pub(super) mod endpoint;
mod health;
pub(super) mod init;
pub(super) mod ipam;
pub(super) mod ipam6;
pub(super) mod network;
pub(super) mod node;
pub(super) mod port;
pub(super) mod service;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub(super) mod token;

use crate::{api::ApiError, model::Change, store::SecretChange};

/// The writes of a mutation.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Changes of the state.
    pub changes: Vec<Change>,
    /// Changes of the secrets.
    pub secrets: Vec<SecretChange>,
}

impl Plan {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.secrets.is_empty()
    }
}

impl From<Vec<Change>> for Plan {
    fn from(changes: Vec<Change>) -> Self {
        Self { changes, secrets: Vec::new() }
    }
}

/// A plan and the answer to the caller.
pub(super) type Planned<T> = Result<(Plan, T), ApiError>;
