//! What each mutation does to the state, as pure functions: state and request in, changes out.
//! One file per noun.

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

/// What a mutation writes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// To the state.
    pub changes: Vec<Change>,
    /// Beside it.
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
