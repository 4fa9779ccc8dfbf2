//! The guardian: a process that outlives its maker and removes the maker's objects, however the
//! maker ended.

use std::{
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::{binaries, cleanup::Instance};

/// The maker's end. While it is open, the guardian waits.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts a guardian for an instance.
    pub fn start(instance: &Instance) -> anyhow::Result<Self> {
        let mut command = Command::new(binaries::testkit()?);
        command.arg("guard").arg("--prefix").arg(&instance.prefix);
        command.arg("--dir").arg(&instance.dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        Ok(Self { child: command.spawn().context("the guardian cannot be started")? })
    }

    /// There is nothing left to guard.
    pub fn dismiss(&mut self) {
        if let Some(mut pipe) = self.child.stdin.take() {
            let _ = pipe.write_all(b"dismissed");
        }
        let _ = self.child.wait();
    }
}

/// The guardian's end.
pub fn guard(prefix: &str, dir: &Path) -> anyhow::Result<ExitCode> {
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }.context("ignoring signals")?;
    }
    let mut instance = Instance::named(prefix)?;
    instance.dir = dir.to_owned();
    let mut last_word = Vec::new();
    std::io::stdin().read_to_end(&mut last_word)?;
    if last_word.is_empty() {
        instance.clean()?;
    }
    Ok(ExitCode::SUCCESS)
}
