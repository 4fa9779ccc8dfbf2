//! How a service shares new flows among its backends.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a new flow's backend is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin: each in turn
    #[default]
    Rr,
    /// Weighted round robin: each in turn, as often as its weight says
    Wrr,
    /// Least connections: the one with fewer flows, for its weight, of two at random
    Lc,
    /// Source hash: by the client's address
    Sh,
    /// Maglev hashing: by the client's address and port; most clients keep their backend when others
    /// come and go
    Maglev,
}

impl Scheduler {
    /// The name, as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Sh => "sh",
            Self::Maglev => "maglev",
        }
    }

    /// What is hashed when nothing else is said; `None` for schedulers that do not hash.
    pub const fn hash(self) -> Option<HashBy> {
        match self {
            Self::Sh => Some(HashBy::Address),
            Self::Maglev => Some(HashBy::Flow),
            Self::Rr | Self::Wrr | Self::Lc => None,
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a scheduler hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HashBy {
    /// The client's address: all its flows have one backend
    Address,
    /// The client's address and port, the port asked and the protocol
    Flow,
}

/// How a service shares new flows among its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Balance {
    /// The scheduler.
    pub scheduler: Scheduler,
    /// What it hashes, where that is not what it does by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashBy>,
    /// For how many seconds after its last new flow a client keeps its backend; 0 when it does not.
    pub affinity_secs: u32,
    /// For how many seconds an established TCP or SCTP flow may be idle; 0 for the default, 7,500.
    pub tcp_idle_secs: u16,
    /// For how many seconds a UDP flow may be idle; 0 for the default, 60, and 300 once both sides have spoken.
    pub udp_idle_secs: u16,
    /// What becomes of TCP connections whose backend has gone.
    pub on_loss: OnLoss,
    /// Which way replies to clients outside take.
    #[serde(rename = "return", skip_serializing_if = "ReturnPath::is_default")]
    pub return_path: ReturnPath,
}

/// Which way the replies of published ports take to clients outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReturnPath {
    /// Back through the host that was asked
    #[default]
    Asked,
    /// From the backend's host straight to the client
    Direct,
}

impl ReturnPath {
    /// Whether it need not be written down.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a TCP connection whose backend has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// The client is told with a reset when it speaks next
    #[default]
    Reset,
    /// Its packets are dropped
    Drop,
}

impl Balance {
    /// What is hashed; `None` where nothing is.
    pub fn hashed(&self) -> Option<HashBy> {
        self.scheduler.hash().map(|usual| self.hash.unwrap_or(usual))
    }
}

/// A backend's share when nothing else is said.
pub const DEFAULT_WEIGHT: u16 = 1;

/// [`DEFAULT_WEIGHT`], for serde.
pub(super) fn default_weight() -> u16 {
    DEFAULT_WEIGHT
}

/// Whether a weight need not be written down.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_default_weight(weight: &u16) -> bool {
    *weight == DEFAULT_WEIGHT
}
