//! Why the agent could not do its work.

use std::path::PathBuf;

use crate::{
    api::{ApiError, ErrorCode},
    datapath::DatapathError,
    dns::KeeperError,
    link::LinkError,
};

/// Why the agent could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An interface or namespace.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The programs or their maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A manager refused, or none is reachable.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A file of the state directory.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file of the state directory has contents that the agent did not write.
    #[error("{path} is damaged: {reason}; {remedy}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The problem.
        reason: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// Another daemon runs.
    #[error(
        "another overlay daemon (process {pid}) runs on this host already and holds {path}; stop it \
         first, or give this one a --run-dir, --state-dir and --pin-dir of its own"
    )]
    Locked {
        /// The other daemon's process.
        pid: String,
        /// The lock.
        path: PathBuf,
    },
    /// The names of a container could not be served.
    #[error("the DNS server of the container could not be started: {0}")]
    Names(String),
    /// The processes that keep the DNS servers' sockets could not be ended.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Something of the host is not there.
    #[error("{0}")]
    Host(String),
}

impl AgentError {
    pub(super) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::Api(error) => return error.clone(),
            AgentError::Link(LinkError::NoNamespace(_) | LinkError::NoInterface(_)) => {
                ErrorCode::NotFound
            }
            AgentError::Link(LinkError::InterfaceExists { .. } | LinkError::PortTaken { .. }) => {
                ErrorCode::Conflict
            }
            _ => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
