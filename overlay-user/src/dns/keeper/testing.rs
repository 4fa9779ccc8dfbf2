//! Keepers in threads, for tests.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

use super::{Keeper, client::Connection, protocol::Request, server::Server};

/// Descriptors that a keeper of a test may use.
pub const DESCRIPTORS: usize = 1024;

/// A host on which keepers can run, one after the other.
pub struct Place {
    _dir: TempDir,
    pub path: PathBuf,
    /// Number of started keepers.
    pub started: Arc<AtomicUsize>,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sockets.sock");
        Self { _dir: dir, path, started: Arc::default() }
    }

    /// Returns a daemon's handle of the keeper.
    pub fn keeper(&self) -> Arc<Keeper> {
        let (path, started) = (self.path.clone(), Arc::clone(&self.started));
        let start = move || {
            let mut server = Server::listen(&path, DESCRIPTORS)?;
            started.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || server.run());
            Ok(())
        };
        Arc::new(Keeper::started_by(self.path.clone(), Box::new(start)))
    }

    /// Ends the keeper like a signal does, without a request of the daemon.
    pub fn kill(&self) {
        let connection = Connection::open(&self.path).expect("a keeper");
        connection.ask(&Request::Quit {}, &[]).expect("done");
        connection.wait_for_end().expect("ended");
    }

    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}
