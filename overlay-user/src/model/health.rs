//! How a service's backends are checked, and what came of it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What is tried to tell whether a backend is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A TCP connection to this port of the backend comes about.
    Tcp(u16),
    /// A GET is answered with a status from 200 to 399.
    Http {
        /// Port of the backend.
        port: u16,
        /// Path, with the slash at its beginning.
        path: String,
    },
    /// A command, run by `/bin/sh -c` in the backend's namespaces, ends with status 0.
    Command(String),
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp :{port}"),
            Self::Http { port, path } => write!(f, "http :{port}{path}"),
            Self::Command(command) => write!(f, "cmd {command:?}"),
        }
    }
}

/// How the backends of a service are checked. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// From the end of one try to the next.
    pub interval_ms: u64,
    /// A try that takes longer has failed.
    pub timeout_ms: u64,
    /// So many failures in a row make a backend unhealthy; one success makes it healthy.
    pub retries: u32,
    /// For so long after its start failures of a backend that was never healthy do not count.
    pub start_period_ms: u64,
}

impl HealthCheck {
    /// What is said when nothing else is: every 5 s, within 2 s, three times.
    pub const fn new(probe: Probe) -> Self {
        Self { probe, interval_ms: 5000, timeout_ms: 2000, retries: 3, start_period_ms: 0 }
    }

    /// From the end of one try to the next.
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// A try that takes longer has failed.
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// For so long after its start failures do not count.
    pub const fn start_period(&self) -> Duration {
        Duration::from_millis(self.start_period_ms)
    }
}

/// What the checks of a backend have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It is not checked, or runs for longer than it is checked and was not found unhealthy.
    #[default]
    Unknown,
    /// It is checked from its start on and has passed no check yet.
    Starting,
    /// The last check passed, or too few have failed since.
    Healthy,
    /// Too many checks in a row have failed.
    Unhealthy,
}

impl Health {
    /// Whether it need not be written down.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "-",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}
