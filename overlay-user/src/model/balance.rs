//! How a service distributes new flows among its backends.
//!
//! This file has three forms of the same settings: [`Balance`] in the store and in the agents,
//! [`BalanceChange`] in requests of the command line and the API, and [`BalanceInspect`] in the
//! output of `overlay service inspect`. The functions between them name every field, so that the
//! compiler reports each place that a new setting misses.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::duration::millis;

/// How a new flow's backend is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin: each in turn
    #[default]
    Rr,
    /// Weighted round robin: each in turn, as often as its weight says
    Wrr,
    /// Least connections by power of two choices: of two backends drawn at random, the one with
    /// fewer flows for its weight
    Lc,
    /// Source hash: by the client's address
    Sh,
    /// Maglev hashing: by the client's address and port; most clients keep their backend when
    /// others come and go
    Maglev,
}

impl Scheduler {
    /// Returns the name, as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Sh => "sh",
            Self::Maglev => "maglev",
        }
    }

    /// Returns the default hash; `None` for schedulers that do not hash.
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
    /// The client's address and port, the destination port and the protocol
    Flow,
}

/// How a service distributes new flows among its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Balance {
    /// The scheduler.
    pub scheduler: Scheduler,
    /// Hash of the scheduler, if it differs from the scheduler's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashBy>,
    /// How many seconds after its last new flow a client keeps its backend; 0 disables affinity.
    pub affinity_secs: u32,
    /// How many seconds an established TCP or SCTP flow may be idle; 0 for the default, 7,500.
    pub tcp_idle_secs: u16,
    /// How many seconds a UDP flow may be idle; 0 for the default, which is 60, and 300 once both
    /// sides have sent.
    pub udp_idle_secs: u16,
    /// How TCP connections with a stale backend are handled.
    pub on_loss: OnLoss,
    /// Path of the replies to clients outside.
    #[serde(rename = "return", skip_serializing_if = "ReturnPath::is_default")]
    pub return_path: ReturnPath,
}

/// Which way the replies of published ports take to clients outside. Stored states and requests
/// have the names of earlier versions, which other nodes may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum ReturnPath {
    /// Back through the ingress node, which the client sent to
    #[default]
    #[serde(rename = "asked", alias = "ingress")]
    #[value(alias = "asked")]
    Ingress,
    /// Direct server return: from the backend's node to the client
    #[serde(rename = "direct", alias = "dsr")]
    #[value(alias = "direct")]
    Dsr,
}

impl ReturnPath {
    /// Returns true for the default, which is not written out.
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

/// What `overlay service create` and `update`, and the requests that they send, say about the
/// sharing of new flows. What is `None` stays as it is; for a new service, it is
/// [`Balance::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct BalanceChange {
    /// How new flows are shared among the backends [default: rr]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_enum, value_name = "SCHEDULER")]
    pub lb: Option<Scheduler>,
    /// What sh and maglev hash [default: address for sh, flow for maglev]
    // With another scheduler `None` means that scheduler's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub lb_hash: Option<HashBy>,
    /// How long after its last new flow a client keeps its backend, 0s for not at all [default: 0s]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long = "affinity", value_name = "TIME", value_parser = millis)]
    pub affinity_ms: Option<u64>,
    /// How long an established TCP or SCTP flow may be idle, up to 65535s; 0s for the default
    /// [default: 7500s]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long = "tcp-timeout", value_name = "TIME", value_parser = millis)]
    pub tcp_timeout_ms: Option<u64>,
    /// How long a UDP flow may be idle, up to 65535s; 0s for the default [default: 60s, 300s once
    /// both sides have spoken]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long = "udp-timeout", value_name = "TIME", value_parser = millis)]
    pub udp_timeout_ms: Option<u64>,
    /// What becomes of TCP connections whose backend has gone [default: reset]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub on_loss: Option<OnLoss>,
    /// Which way replies of published ports take to clients outside [default: ingress]
    #[serde(rename = "return", skip_serializing_if = "Option::is_none")]
    #[arg(long = "return", value_enum, value_name = "WAY")]
    pub return_path: Option<ReturnPath>,
}

/// Longest idle time that an entry of the datapath can hold.
const MAX_IDLE_MS: u64 = u16::MAX as u64 * 1000;

/// Longest affinity: one day.
const MAX_AFFINITY_MS: u64 = 24 * 3600 * 1000;

/// Why a [`BalanceChange`] is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBalance {
    /// A hash for a scheduler that does not hash.
    #[error("scheduler {0} hashes nothing")]
    HashesNothing(Scheduler),
    /// The affinity is too long, in milliseconds.
    #[error("affinity of {0} ms is longer than a day ({MAX_AFFINITY_MS} ms)")]
    Affinity(u64),
    /// The idle time is too long.
    #[error("{ms} ms without a packet is more than a {protocol} flow can have")]
    Idle {
        /// Protocol of the flows.
        protocol: &'static str,
        /// Idle time in milliseconds.
        ms: u64,
    },
}

impl InvalidBalance {
    /// Returns the remedy.
    pub fn hint(&self) -> String {
        match self {
            Self::HashesNothing(_) => {
                format!("hashes are for {} and {}", Scheduler::Sh, Scheduler::Maglev)
            }
            Self::Affinity(_) => "give up to 24h, or 0s for none".to_owned(),
            Self::Idle { .. } => {
                format!("give up to {} s, or 0 for the default", MAX_IDLE_MS / 1000)
            }
        }
    }
}

impl Balance {
    /// Returns the hash in use; `None` if the scheduler does not hash.
    pub fn hashed(&self) -> Option<HashBy> {
        self.scheduler.hash().map(|usual| self.hash.unwrap_or(usual))
    }

    /// Returns the settings after a change.
    ///
    /// # Errors
    /// Combinations without a meaning, and times out of range.
    pub fn changed(self, change: &BalanceChange) -> Result<Self, InvalidBalance> {
        let BalanceChange {
            lb,
            lb_hash,
            affinity_ms,
            tcp_timeout_ms,
            udp_timeout_ms,
            on_loss,
            return_path,
        } = *change;
        let scheduler = lb.unwrap_or(self.scheduler);
        // The hash of one scheduler has no meaning for another one.
        let kept = self.hash.filter(|_| scheduler == self.scheduler);
        if lb_hash.is_some() && scheduler.hash().is_none() {
            return Err(InvalidBalance::HashesNothing(scheduler));
        }
        Ok(Self {
            scheduler,
            hash: lb_hash.or(kept),
            affinity_secs: match affinity_ms {
                None => self.affinity_secs,
                Some(ms) => affinity(ms)?,
            },
            tcp_idle_secs: match tcp_timeout_ms {
                None => self.tcp_idle_secs,
                Some(ms) => idle("TCP", ms)?,
            },
            udp_idle_secs: match udp_timeout_ms {
                None => self.udp_idle_secs,
                Some(ms) => idle("UDP", ms)?,
            },
            on_loss: on_loss.unwrap_or(self.on_loss),
            return_path: return_path.unwrap_or(self.return_path),
        })
    }
}

/// Returns for how many seconds a client keeps its backend. The programs count in whole seconds.
fn affinity(ms: u64) -> Result<u32, InvalidBalance> {
    if ms > MAX_AFFINITY_MS {
        return Err(InvalidBalance::Affinity(ms));
    }
    u32::try_from(ms.div_ceil(1000)).map_err(|_| InvalidBalance::Affinity(ms))
}

/// Returns how many seconds flows may be idle. The programs count in whole seconds.
fn idle(protocol: &'static str, ms: u64) -> Result<u16, InvalidBalance> {
    let too_long = InvalidBalance::Idle { protocol, ms };
    if ms > MAX_IDLE_MS {
        return Err(too_long);
    }
    u16::try_from(ms.div_ceil(1000)).map_err(|_| too_long)
}

/// The settings as `overlay service inspect` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BalanceInspect {
    scheduler: Scheduler,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<HashBy>,
    /// 0 means no affinity.
    affinity_seconds: u32,
    /// 0 means the default.
    tcp_timeout_seconds: u16,
    /// 0 means the default.
    udp_timeout_seconds: u16,
    on_loss: OnLoss,
    #[serde(rename = "Return")]
    return_path: ReturnPath,
}

impl From<&Balance> for BalanceInspect {
    fn from(balance: &Balance) -> Self {
        let &Balance {
            scheduler,
            hash: _, // Shown as `hashed`, with the scheduler's default.
            affinity_secs,
            tcp_idle_secs,
            udp_idle_secs,
            on_loss,
            return_path,
        } = balance;
        Self {
            scheduler,
            hash: balance.hashed(),
            affinity_seconds: affinity_secs,
            tcp_timeout_seconds: tcp_idle_secs,
            udp_timeout_seconds: udp_idle_secs,
            on_loss,
            return_path,
        }
    }
}

/// Default weight of a backend.
pub const DEFAULT_WEIGHT: u16 = 1;

/// [`DEFAULT_WEIGHT`], for serde.
pub(super) fn default_weight() -> u16 {
    DEFAULT_WEIGHT
}

/// Returns true for the default weight, which is not written out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn is_default_weight(weight: &u16) -> bool {
    *weight == DEFAULT_WEIGHT
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn return_paths_have_one_name_in_the_store_and_former_names_on_the_command_line() {
        for (path, word, former) in
            [(ReturnPath::Ingress, "ingress", "asked"), (ReturnPath::Dsr, "dsr", "direct")]
        {
            for text in [word, former] {
                assert_eq!(ReturnPath::from_str(text, false), Ok(path), "{text}");
                let json = format!("{text:?}");
                assert_eq!(serde_json::from_str::<ReturnPath>(&json).expect(text), path);
            }
            assert_eq!(serde_json::to_string(&path).expect("JSON"), format!("{former:?}"));
        }
    }

    fn lb(lb: Scheduler) -> BalanceChange {
        BalanceChange { lb: Some(lb), ..BalanceChange::default() }
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        let by_address = BalanceChange { lb_hash: Some(HashBy::Address), ..lb(Scheduler::Maglev) };
        let before = Balance::default().changed(&by_address).expect("a scheduler that hashes");
        let affinity = BalanceChange { affinity_ms: Some(1_500), ..BalanceChange::default() };
        let after = before.changed(&affinity).expect("an affinity");
        assert_eq!(after, Balance { affinity_secs: 2, ..before });
        assert_eq!(after.hashed(), Some(HashBy::Address));
        let off = BalanceChange { affinity_ms: Some(0), ..BalanceChange::default() };
        assert_eq!(after.changed(&off).expect("none"), before);
    }

    #[test]
    fn another_scheduler_hashes_what_it_does_by_itself() {
        let before = Balance {
            scheduler: Scheduler::Maglev,
            hash: Some(HashBy::Address),
            ..Balance::default()
        };
        let maglev = before.changed(&lb(Scheduler::Maglev)).expect("the same");
        assert_eq!(maglev.hashed(), Some(HashBy::Address));
        let rr = before.changed(&lb(Scheduler::Rr)).expect("another");
        assert_eq!(rr.hashed(), None);
        assert_eq!(rr.changed(&lb(Scheduler::Sh)).expect("sh").hashed(), Some(HashBy::Address));
        assert_eq!(rr.changed(&lb(Scheduler::Maglev)).expect("m").hashed(), Some(HashBy::Flow));
    }

    #[test]
    fn flows_are_idle_for_as_long_as_the_service_says() {
        let change = BalanceChange {
            tcp_timeout_ms: Some(65_535_000),
            udp_timeout_ms: Some(1),
            on_loss: Some(OnLoss::Drop),
            return_path: Some(ReturnPath::Dsr),
            ..BalanceChange::default()
        };
        let after = Balance::default().changed(&change).expect("times in range");
        assert_eq!((after.tcp_idle_secs, after.udp_idle_secs), (65_535, 1));
        assert_eq!((after.on_loss, after.return_path), (OnLoss::Drop, ReturnPath::Dsr));
        assert_eq!(after.changed(&BalanceChange::default()).expect("nothing"), after);
        for (tcp, udp) in [(Some(65_535_001), None), (None, Some(u64::MAX))] {
            let change = BalanceChange {
                tcp_timeout_ms: tcp,
                udp_timeout_ms: udp,
                ..BalanceChange::default()
            };
            let error = after.changed(&change).expect_err("too long");
            assert!(error.hint().contains("65535 s"), "{error}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Lc] {
            let change = BalanceChange { lb_hash: Some(HashBy::Flow), ..lb(scheduler) };
            let error = Balance::default().changed(&change).expect_err("refused");
            assert!(error.to_string().contains(scheduler.name()), "{error}");
        }
        let long = BalanceChange { affinity_ms: Some(86_400_001), ..BalanceChange::default() };
        assert!(Balance::default().changed(&long).is_err());
    }
}
