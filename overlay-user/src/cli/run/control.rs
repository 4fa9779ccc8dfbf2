//! The messages between parent and child of `overlay run`: JSON lines over a socket pair.

use std::{ffi::OsStr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::error::exit_with;

/// From the child to the parent. The end of the stream after `Go` means that the command runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromChild {
    /// The namespaces are made.
    Ready,
    /// Something failed before the command ran.
    Failed(Failure),
}

/// From the parent to the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromParent {
    /// Show these files and become the command.
    Go(Etc),
}

/// The files in `/etc` for the command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Etc {
    /// Host name; `None` keeps the host's.
    pub hostname: Option<String>,
    /// Files to show in place of the host's.
    pub files: Vec<File>,
}

/// One file shown in place of the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// Where the command sees it.
    pub path: PathBuf,
    /// Its contents.
    pub text: String,
    /// Whether the command must not run without it.
    pub needed: bool,
}

/// Why the command does not run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// Exit status of `overlay run`.
    pub status: u8,
    /// The operation, the problem and the remedy.
    pub message: String,
}

impl Failure {
    /// A failure of ours.
    pub(super) fn ours(error: &anyhow::Error) -> Self {
        Self { status: 1, message: format!("{error:#}") }
    }

    /// The system's error for the command. As in shells, the status is 127 when there is no such
    /// command and 126 when it cannot be executed.
    pub(super) fn exec(command: &OsStr, error: &std::io::Error) -> Self {
        let command = command.to_string_lossy();
        match error.kind() {
            std::io::ErrorKind::NotFound => Self {
                status: 127,
                message: format!("command {command:?} was not found; give a path or install it"),
            },
            _ => Self { status: 126, message: format!("cannot execute {command:?}: {error}") },
        }
    }
}

impl From<Failure> for anyhow::Error {
    fn from(Failure { status, message }: Failure) -> Self {
        exit_with(status, message)
    }
}
