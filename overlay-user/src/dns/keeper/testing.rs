//! Keepers in threads of a test.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

use super::{Keeper, client::Connection, protocol::Request, server::Server};

/// Descriptors that a keeper of a test may have.
pub const DESCRIPTORS: usize = 1024;

/// A host where keepers may run, one after the other.
pub struct Place {
    _dir: TempDir,
    pub path: PathBuf,
    /// How many were started.
    pub started: Arc<AtomicUsize>,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sockets.sock");
        Self { _dir: dir, path, started: Arc::default() }
    }

    /// What one daemon has of the keeper.
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

    /// Ends the keeper as a signal would: no daemon has asked for it.
    pub fn kill(&self) {
        let connection = Connection::open(&self.path).expect("a keeper");
        connection.ask(&Request::Quit {}, &[]).expect("done");
        connection.wait_for_end().expect("ended");
    }

    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}
