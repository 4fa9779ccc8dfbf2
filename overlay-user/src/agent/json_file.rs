//! Files of the state directory: JSON that is replaced in one step.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use super::error::AgentError;
use crate::file::write_atomically;

/// Reads a file; `None` when there is none.
///
/// # Errors
/// [`AgentError::Damaged`], with `remedy`, when the agent did not write its contents.
pub fn read<T: DeserializeOwned>(
    path: &Path,
    remedy: &'static str,
) -> Result<Option<T>, AgentError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(AgentError::io(path, e)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| AgentError::Damaged {
        path: path.to_owned(),
        reason: e.to_string(),
        remedy,
    })
}

/// Writes a file in one step.
///
/// # Errors
/// [`AgentError::Io`] names the file.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), AgentError> {
    let bytes = serde_json::to_vec(value).map_err(|e| AgentError::io(path, e.into()))?;
    write_atomically(path, &bytes).map_err(|e| AgentError::io(path, e))
}
