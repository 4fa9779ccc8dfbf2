//! A cluster that the tests of one file share.

use std::{
    panic::Location,
    sync::{Mutex, MutexGuard, Once, PoisonError, TryLockError},
};

use anyhow::bail;

use crate::cluster::Cluster;

/// A cluster that the first test that needs it makes. It is removed when a test of another file
/// needs one and no test uses this one, or when the test program ends. Tests take turns, so that
/// one test's load does not slow another.
pub struct Shared<T = Cluster> {
    make: fn() -> anyhow::Result<T>,
    file: &'static str,
    made: Mutex<Made<T>>,
}

enum Made<T> {
    Not,
    Is(T),
    /// Why it could not be made.
    Failed(String),
}

/// The shared cluster while a test has it.
pub struct Turn<'a, T>(MutexGuard<'a, Made<T>>);

impl<T> std::ops::Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &*self.0 {
            Made::Is(made) => made,
            Made::Not | Made::Failed(_) => unreachable!("only what was made is lent"),
        }
    }
}

/// Removes a shared cluster. With `true`, it waits until no test uses the cluster. With `false`, it
/// leaves a cluster in use alone and returns `false`.
type Removal = Box<dyn Fn(bool) -> bool + Send>;

/// Every cluster that was made and not removed, with the test file that shares it.
static MADE: Mutex<Vec<(&str, Removal)>> = Mutex::new(Vec::new());

fn made() -> MutexGuard<'static, Vec<(&'static str, Removal)>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn teardown() {
    let all = std::mem::take(&mut *made());
    for (_, remove) in all {
        // A panic must not cross into C; the guardian does the rest.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| remove(true)));
    }
}

/// Removes the clusters of other files that no test uses.
fn remove_others(file: &str) {
    let others = made().extract_if(.., |(of, _)| *of != file).collect::<Vec<_>>();
    let kept: Vec<_> = others.into_iter().filter(|(_, remove)| !remove(false)).collect();
    made().extend(kept);
}

impl<T: Send + 'static> Shared<T> {
    /// Made by `make` when it is first wanted.
    #[track_caller]
    pub const fn new(make: fn() -> anyhow::Result<T>) -> Self {
        let file = Location::caller().file();
        Self { make, file, made: Mutex::new(Made::Not) }
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// If it could not be made: every test then fails with the reason.
    pub fn turn(&'static self) -> anyhow::Result<Turn<'static, T>> {
        let mut turn = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*turn, Made::Not) {
            remove_others(self.file);
            *turn = match (self.make)() {
                Ok(made) => {
                    self.remove_later();
                    Made::Is(made)
                }
                Err(error) => Made::Failed(format!("{error:?}")),
            };
        }
        if let Made::Failed(error) = &*turn {
            bail!("the cluster could not be made: {error}");
        }
        Ok(Turn(turn))
    }

    fn remove_later(&'static self) {
        static AT_EXIT: Once = Once::new();
        AT_EXIT.call_once(|| {
            // SAFETY: the function takes no arguments, does not unwind and may run on any thread.
            unsafe { nix::libc::atexit(teardown) };
        });
        made().push((
            self.file,
            Box::new(|wait| {
                let guard = match self.made.try_lock() {
                    Ok(guard) => Some(guard),
                    Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
                    Err(TryLockError::WouldBlock) if wait => {
                        Some(self.made.lock().unwrap_or_else(PoisonError::into_inner))
                    }
                    Err(TryLockError::WouldBlock) => None,
                };
                guard.map(|mut made| *made = Made::Not).is_some()
            }),
        ));
    }
}
