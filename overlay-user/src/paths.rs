//! Where the daemon of a host keeps its files.

use std::path::PathBuf;

/// The directories of one host's daemon. All are settable, so that several hosts can live on one
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
    /// The API's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("overlay.sock")
    }

    /// Locked by the running daemon.
    pub fn lock(&self) -> PathBuf {
        self.run_dir.join("overlay.lock")
    }

    /// The socket of the process that keeps DNS sockets open while no daemon runs.
    pub fn keeper(&self) -> PathBuf {
        self.run_dir.join("sockets.sock")
    }

    /// `crate::agent::AgentConfig` as JSON.
    pub fn config(&self) -> PathBuf {
        self.state_dir.join("agent.json")
    }

    /// The manager's store.
    pub fn store(&self) -> PathBuf {
        self.state_dir.join("cluster.redb")
    }

    /// Last state heard of, so that a host without managers keeps forwarding.
    pub fn cached_state(&self) -> PathBuf {
        self.state_dir.join("last-state.json")
    }

    /// Containers attached on this host.
    pub fn containers(&self) -> PathBuf {
        self.state_dir.join("containers.json")
    }

    /// The node's key (mode 0600), certificate and the CA's certificate.
    pub fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// What a detached daemon prints.
    pub fn log(&self) -> PathBuf {
        self.state_dir.join("agent.log")
    }

    /// Namespaces that `overlay run` made.
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }
}
