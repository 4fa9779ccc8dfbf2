//! Waiting for what happens soon, and for SIGINT.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_signal: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP end all waits of this crate with an error, so that the
/// usual error path tears everything down. A second signal changes nothing.
///
/// # Errors
/// The kernel rejects the handler.
pub fn on_interrupt() -> anyhow::Result<()> {
    let action =
        SigAction::new(SigHandler::Handler(interrupted), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("a signal handler")?;
    }
    Ok(())
}

/// Fails after SIGINT.
///
/// # Errors
/// "interrupted", if so.
pub fn check_interrupted() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// The factor by which timeouts grow, from `OVERLAY_BOX_PATIENCE`: an emulated machine is several
/// times slower. The number of the fuzzer's seeds is divided by it.
pub fn patience() -> u32 {
    let factor = std::env::var("OVERLAY_BOX_PATIENCE").ok().and_then(|text| text.parse().ok());
    factor.unwrap_or(1).max(1)
}

/// Repeats the request until the answer is good, for at most `limit` times [`patience`].
///
/// # Errors
/// The condition that did not come true, and the last answer.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let limit = limit * patience();
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        check_interrupted()?;
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() >= limit => {
                return Err(error)
                    .with_context(|| format!("{what}: not within {} s", limit.as_secs()));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
