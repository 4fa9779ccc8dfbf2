//! The daemon of a host: follows the cluster's state and applies it to the kernel.
//!
//! ```text
//! follow --state--> reconcile: compile (pure) -> diff against the maps -> apply
//!                      ^ facts: links of attached containers, the host link, addresses
//! attach, host --------+
//! ```
//! Everything is level-triggered: a change of the state or of the facts wakes the reconciler, which
//! looks at both as they are then.
//!
//! Each part owns its state and knows the parts below it: `run` assembles the parts; `serve`,
//! `inspect` and `leave` answer callers; `attach`, `count` and `report` work on containers, flows
//! and reports; `host` sets up the host; `reconcile` writes the maps; `events` tells watchers;
//! `follow` has the cluster's state. `compile` and `show` are pure. All of them use `context`.

mod attach;
mod blocking;
mod clock;
mod compile;
mod conditions;
mod config;
mod context;
mod control;
mod count;
mod daemon;
mod error;
mod events;
mod follow;
mod host;
mod inspect;
mod interfaces;
mod json_file;
mod leave;
mod platform;
mod reconcile;
mod report;
mod run;
mod serve;
mod show;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use compile::{HOST_MODE, LocalFacts, compile, network_mtu};
pub use config::{AgentConfig, CONFIG_FORMAT, ConfigError, OUTSIDE_FLOWS, OUTSIDE_PORTS};
pub use context::Parts;
pub use control::{Control, Watch};
pub use daemon::daemon;
pub use error::AgentError;
pub use platform::{
    Checked, Host, NameServers, NamespaceId, Process, boot_id, local_ports, namespace_at,
};
pub use run::{Agent, Tasks};
pub use serve::{Events, LocalClient};
