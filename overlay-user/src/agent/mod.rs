//! The daemon of a host: follows the cluster's state and makes its kernel show it.

mod config;

pub use config::{AgentConfig, CONFIG_FORMAT, ConfigError, Paths, write_atomically};
