//! The decisions of `init` and `join` for a host.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    datapath::XdpMode,
    file::write_atomically,
    model::{Id, Role},
};

/// The decisions of `overlay init` or `overlay join` for this host; `agent.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Version of this file.
    pub format: u32,
    /// The cluster.
    pub cluster: Id,
    /// This node.
    pub node: Id,
    /// Its name.
    pub name: String,
    /// Manager or agent.
    pub role: Role,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
    /// Underlay interface.
    pub iface: String,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// Where the manager on this host listens (managers only).
    pub listen: Option<SocketAddr>,
    /// The managers to follow.
    pub managers: Vec<SocketAddr>,
    /// XDP on the underlay.
    pub xdp: XdpMode,
    /// Size of the conntrack table.
    pub conntrack_size: u32,
    /// First and last source port of flows to the outside.
    pub outside_ports: [u16; 2],
    /// Most flows to the outside that an endpoint may have at a time.
    pub outside_flows: u32,
    /// cgroup v2 directory for the socket programs; `None` looks for the mount.
    pub cgroup: Option<PathBuf>,
    /// Whether the sockets of containers are connected to a backend in place of a VIP. If not, the
    /// programs translate each packet.
    pub socket_lb: bool,
    /// Where names outside the cluster are asked; empty reads /etc/resolv.conf.
    pub dns_upstreams: Vec<SocketAddr>,
}

/// Default of [`AgentConfig::outside_ports`]: above the ports that Linux gives to sockets by
/// default (net.ipv4.ip_local_port_range, 32768 to 60999) and those that services are given.
pub const OUTSIDE_PORTS: [u16; 2] = [61_000, 65_535];
/// Default of [`AgentConfig::outside_flows`].
pub const OUTSIDE_FLOWS: u32 = 4096;

/// Current version of `agent.json`.
pub const CONFIG_FORMAT: u32 = 1;

/// Why `agent.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error(
        "this host is in no cluster ({0} does not exist); run `overlay init` for a new cluster or \
         `overlay join` for an existing one"
    )]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It is damaged.
    #[error("{path} is damaged: {reason}; restore it, or move it away and join again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// It was written by a newer version.
    #[error(
        "{path} has format {found}, this version reads {CONFIG_FORMAT}; install the newer version"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl AgentConfig {
    /// Reads `agent.json`.
    ///
    /// # Errors
    /// [`ConfigError`] names the remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigError::Missing(path.to_owned()));
            }
            Err(source) => return Err(ConfigError::Io { path: path.to_owned(), source }),
        };
        let damaged = |reason: String| ConfigError::Damaged { path: path.to_owned(), reason };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(CONFIG_FORMAT) => {}
            Some(format) => {
                let found = u32::try_from(format).unwrap_or(u32::MAX);
                return Err(ConfigError::Format { path: path.to_owned(), found });
            }
            None => return Err(damaged("no \"format\"".to_owned())),
        }
        serde_json::from_value(value).map_err(|e| damaged(e.to_string()))
    }

    /// Writes `agent.json` in one step: a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// [`ConfigError::Io`] names the file.
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        write_atomically(path, &serde_json::to_vec_pretty(self).unwrap_or_default())
            .map_err(|source| ConfigError::Io { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            format: CONFIG_FORMAT,
            cluster: Id::random(),
            node: Id::random(),
            name: "h1".to_owned(),
            role: Role::Manager,
            data_path_addr: [172, 16, 1, 10].into(),
            iface: "eth0".to_owned(),
            data_path_port: 4789,
            listen: None,
            managers: vec![],
            xdp: XdpMode::Auto,
            conntrack_size: 1024,
            outside_ports: OUTSIDE_PORTS,
            outside_flows: OUTSIDE_FLOWS,
            cgroup: None,
            socket_lb: true,
            dns_upstreams: vec![],
        }
    }

    #[test]
    fn a_saved_configuration_reads_back_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("agent.json");
        let config = config();
        config.save(&path).expect("saved");
        assert_eq!(AgentConfig::load(&path).expect("loaded"), config);
    }

    #[test]
    fn what_is_missing_damaged_or_newer_is_said_apart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("agent.json");
        assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Missing(_))));
        std::fs::write(&path, "{\"format\": 1, \"nod").expect("written");
        assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Damaged { .. })));
        std::fs::write(&path, "{\"format\": 2}").expect("written");
        assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Format { found: 2, .. })));
    }
}
