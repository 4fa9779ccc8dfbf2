//! Paths of the daemon's files.

use std::path::PathBuf;

/// The directories of a host's daemon. All of them can be set, so that several hosts can share one
/// machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// State that survives reboots, default `/var/lib/overlay`.
    pub state_dir: PathBuf,
    /// Socket, lock and namespaces, default `/run/overlay`.
    pub run_dir: PathBuf,
    /// Pins, in a bpffs, default `/sys/fs/bpf/overlay`.
    pub pin_dir: PathBuf,
}

impl Paths {
    /// Returns the API's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("overlay.sock")
    }

    /// Returns the file that the running daemon locks.
    pub fn lock(&self) -> PathBuf {
        self.run_dir.join("overlay.lock")
    }

    /// Returns the socket of the process that keeps DNS sockets open while no daemon runs.
    pub fn keeper(&self) -> PathBuf {
        self.run_dir.join("sockets.sock")
    }

    /// Returns the file with `crate::agent::AgentConfig` as JSON.
    pub fn config(&self) -> PathBuf {
        self.state_dir.join("agent.json")
    }

    /// Returns the manager's store.
    pub fn store(&self) -> PathBuf {
        self.state_dir.join("cluster.redb")
    }

    /// Returns the file with the last received state, so that a host without managers keeps
    /// forwarding.
    pub fn cached_state(&self) -> PathBuf {
        self.state_dir.join("last-state.json")
    }

    /// Returns the file with the containers attached on this host.
    pub fn containers(&self) -> PathBuf {
        self.state_dir.join("containers.json")
    }

    /// Returns the directory of the node's key (mode 0600), its certificate and the CA's
    /// certificate.
    pub fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// Returns the file with the output of a detached daemon.
    pub fn log(&self) -> PathBuf {
        self.state_dir.join("agent.log")
    }

    /// Returns the directory of the namespaces that `overlay run` made.
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }
}
