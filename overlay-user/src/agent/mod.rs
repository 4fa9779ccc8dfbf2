//! The daemon of a host: follows the cluster's state and makes its kernel show it.

mod compile;
mod config;

#[cfg(test)]
mod compile_properties;
#[cfg(test)]
mod testing;

pub use compile::{HOST_MODE, LocalFacts, compile, network_mtu};
pub use config::{AgentConfig, CONFIG_FORMAT, ConfigError, Paths, write_atomically};
