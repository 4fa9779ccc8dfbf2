//! Helpers for the tests on the real kernel, which run as root, in namespaces of their own.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use super::netns::{self, Namespace};

/// Whether the test may touch the kernel; if not, prints the name of the skipped test.
pub(crate) fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: {what} needs root");
    }
    root
}

/// A name that no other test of this or another process uses.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A fresh network namespace that is removed with the value.
pub(crate) struct TestNetns {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl TestNetns {
    /// Makes one with `lo` down and nothing else in it.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(unique("ns"));
        netns::create(&path).expect("a network namespace");
        Self { directory, path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is, as links name it.
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Runs a test inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, test: impl FnOnce() -> T + Send) -> T {
        Namespace::open(&self.path).expect("open").run(test).expect("entered")
    }

    /// Runs an asynchronous test inside, all of it on one thread.
    pub(crate) fn block_on<T: Send>(&self, test: impl Future<Output = T> + Send) -> T {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(test)
        })
    }

    /// Runs a command inside and returns its output; fails the test when the command fails.
    pub(crate) fn command(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = std::process::Command::new(words.next().expect("a program"));
        let output = self.run(|| command.args(words).output().expect("the command starts"));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for TestNetns {
    fn drop(&mut self) {
        if let Err(e) = netns::remove(&self.path) {
            eprintln!("left behind in {}: {e}", self.directory.path().display());
        }
    }
}
