//! `cargo xtask object`

use std::{
    env,
    process::{Command, ExitCode, Stdio},
    sync::Once,
};

use anyhow::{Context as _, Result};

use crate::{root, setup};

/// Build the eBPF programs alone, and show how far it is.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask object

Cargo hides what a build script says while it works, so a plain `cargo build` is silent while it builds
the programs. The other commands do this first: the build that follows finds the programs ready. Needs
no root, unless setup has to install something first.")]
pub struct Object {}

impl Object {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        setup::ensure(setup::Scope::Build)?;
        let program = env::current_exe().context("cannot tell the path of this program")?;
        eprintln!("eBPF programs:");
        overlay_build::build_ahead(&program, &[])?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the programs, once in the life of this process, as the user that started us: a separate
/// process can drop root, and this one cannot. Errors are left to the build that follows, which
/// reports them.
pub fn ahead() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(program) = env::current_exe() else { return };
        let mut object = Command::new(program);
        object.arg("object").stdin(Stdio::null());
        root::step_down(&mut object);
        let _ = object.status();
    });
}
