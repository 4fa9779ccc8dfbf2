//! How a service's backends are checked, and the results of the checks.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The probe of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A TCP connection to this port of the backend. It passes if the connection is established.
    Tcp(u16),
    /// An HTTP GET. It passes with a status from 200 to 399.
    Http {
        /// Port of the backend.
        port: u16,
        /// Path, with its leading slash.
        path: String,
    },
    /// A command, run by `/bin/sh -c` in the backend's namespaces. It passes with exit status 0.
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
    /// The probe.
    pub probe: Probe,
    /// Time from the end of one check to the start of the next.
    pub interval_ms: u64,
    /// A check that takes longer has failed.
    pub timeout_ms: u64,
    /// Failures in a row that make a backend unhealthy. One success makes it healthy.
    pub retries: u32,
    /// Time after a backend's start in which failures do not count, unless it was healthy before.
    pub start_period_ms: u64,
}

impl HealthCheck {
    /// Returns a check with the default settings: every 5 s, a timeout of 2 s, three retries.
    pub const fn new(probe: Probe) -> Self {
        Self { probe, interval_ms: 5000, timeout_ms: 2000, retries: 3, start_period_ms: 0 }
    }

    /// Returns the time from the end of one check to the start of the next.
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// Returns the longest duration of a check.
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Returns the time after a backend's start in which failures do not count.
    pub const fn start_period(&self) -> Duration {
        Duration::from_millis(self.start_period_ms)
    }
}

/// The result of a backend's checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The backend is not checked, or it was already running when its service got the check and was
    /// not found unhealthy since.
    #[default]
    Unknown,
    /// The backend has been checked since its start and has passed no check yet.
    Starting,
    /// The last check passed, or too few checks have failed since.
    Healthy,
    /// Too many checks in a row have failed.
    Unhealthy,
}

impl Health {
    /// Returns true for the default, which is not written out.
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
