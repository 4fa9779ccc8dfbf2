//! A cluster that the tests of one file share.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::cluster::Cluster;

/// A cluster made by the first test that wants it and removed when the test program ends. Tests
/// take turns, so that one test's load does not slow another.
pub struct Shared<T = Cluster> {
    make: fn() -> anyhow::Result<T>,
    made: OnceLock<Result<Mutex<Option<T>>, String>>,
}

/// The shared cluster while a test has it.
pub struct Turn<'a, T>(MutexGuard<'a, Option<T>>);

impl<T> std::ops::Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("a shared cluster lives until the program ends")
    }
}

type Teardown = Box<dyn FnOnce() + Send>;

/// What the end of the program has to remove.
static TEARDOWN: Mutex<Vec<Teardown>> = Mutex::new(Vec::new());

extern "C" fn teardown() {
    let all = std::mem::take(&mut *TEARDOWN.lock().unwrap_or_else(PoisonError::into_inner));
    for teardown in all {
        // A panic must not cross into C; the guardian does the rest.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(teardown));
    }
}

impl<T: Send + 'static> Shared<T> {
    /// Made by `make` when it is first wanted.
    pub const fn new(make: fn() -> anyhow::Result<T>) -> Self {
        Self { make, made: OnceLock::new() }
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// If it could not be made: every test then fails with the reason.
    pub fn turn(&'static self) -> anyhow::Result<Turn<'static, T>> {
        let made = self.made.get_or_init(|| match (self.make)() {
            Ok(made) => {
                self.remove_at_exit();
                Ok(Mutex::new(Some(made)))
            }
            Err(error) => Err(format!("{error:?}")),
        });
        match made {
            Ok(mutex) => Ok(Turn(mutex.lock().unwrap_or_else(PoisonError::into_inner))),
            Err(error) => Err(anyhow::anyhow!("the cluster could not be made: {error}")),
        }
    }

    fn remove_at_exit(&'static self) {
        let mut all = TEARDOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            // SAFETY: the function takes no arguments, does not unwind and may run on any thread.
            unsafe { nix::libc::atexit(teardown) };
        }
        all.push(Box::new(|| {
            if let Some(Ok(mutex)) = self.made.get() {
                drop(mutex.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
        }));
    }
}
