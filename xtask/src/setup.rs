//! `cargo xtask setup`

use std::{
    path::Path,
    process::{ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use overlay_build::{Error, LINKER_VERSION, Toolchain, linker_install_args};

use crate::{cargo, machine, packages, packages::Need, root};

/// Install what this machine lacks to build and to run overlay, and say what and why.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask setup

Installs Debian packages (apt-get) and bpf-linker (cargo install), and mounts bpffs. It can be run
again at any time, and starts no service. Every other command does the same first. Runs again with
sudo when something is missing that only root can install.")]
pub struct Setup {}

/// The coming work on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Compiling.
    Build,
    /// Loading programs, running the demo and the tests.
    Run,
    /// Like `Run`, with the programs that services are compared with.
    Compare,
    /// Booting other kernels.
    Boot,
    /// Like `Boot`, with IPVS's tool.
    BootIpvs,
    /// Like `BootIpvs`, with the other programs of the comparison of services.
    CompareBooted,
}

impl Setup {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        ensure(Scope::Run)?;
        println!("setup: {}", summary()?);
        Ok(ExitCode::SUCCESS)
    }
}

/// Installs the needs of the scope's commands; silent if this machine has them already.
///
/// # Errors
/// Something is missing and cannot be installed.
pub fn ensure(scope: Scope) -> Result<()> {
    let missing = packages::missing(scope)?;
    let mount = matches!(scope, Scope::Run | Scope::Compare) && !machine::has_bpffs();
    if let Some(why) = why_root(&missing, mount) {
        root::require(&why)?;
    }
    if !missing.is_empty() {
        packages::install(&missing)?;
        if let [need, ..] = packages::missing(scope)?.as_slice() {
            bail!(
                "{} is installed and does not help: still missing is {}",
                need.packages.join(" "),
                need.why
            );
        }
    }
    if !has_linker()? {
        install_linker()?;
    }
    if mount {
        mount_bpffs()?;
    }
    Ok(())
}

fn why_root(missing: &[Need], mount: bool) -> Option<String> {
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    match (packages.as_slice(), mount) {
        ([], false) => None,
        ([], true) => Some(format!("mounting bpffs at {}", machine::BPFFS)),
        (packages, _) => Some(format!("installing {}", packages.join(" "))),
    }
}

/// A prebuilt object needs no linker.
fn has_linker() -> Result<bool> {
    if matches!(overlay_build::choose()?, Toolchain::Prebuilt(_)) {
        return Ok(true);
    }
    match overlay_build::find_linker() {
        Ok(_) => Ok(true),
        Err(Error::NoLinker { found }) => {
            println!(
                "setup: installing bpf-linker {LINKER_VERSION} (takes a minute or two): it links \
                 the eBPF programs, and {found}"
            );
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn install_linker() -> Result<()> {
    let status = cargo::command()
        .args(linker_install_args())
        .arg("--quiet")
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", linker_install_args().join(" "));
    }
    overlay_build::find_linker()?;
    Ok(())
}

fn mount_bpffs() -> Result<()> {
    println!("setup: mounting bpffs at {}: pinned programs and maps live there", machine::BPFFS);
    let status = machine::command(Path::new("mount"))
        .args(["-t", "bpf", "bpf", machine::BPFFS])
        .stdin(Stdio::null())
        .status()
        .context("cannot run mount")?;
    if !status.success() {
        bail!(
            "cannot mount bpffs at {} ({status}). In a container it takes CAP_SYS_ADMIN and a \
             writable /sys, or a bind mount of the host's",
            machine::BPFFS
        );
    }
    Ok(())
}

fn summary() -> Result<String> {
    let compiler = match overlay_build::choose()? {
        Toolchain::Prebuilt(object) => return Ok(format!("ready; prebuilt {}", object.display())),
        Toolchain::Sysroot(compiler) => compiler.rustc.display().to_string(),
        Toolchain::BuildStd(compiler) => format!("{} (build-std)", compiler.rustc.display()),
    };
    let linker = overlay_build::find_linker()?.path;
    Ok(format!(
        "ready; eBPF compiler {compiler}, bpf-linker {LINKER_VERSION} in {}, bpffs at {}",
        linker.parent().unwrap_or(&linker).display(),
        machine::BPFFS
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_machine_needs_no_root() {
        assert_eq!(why_root(&[], false), None);
        assert_eq!(why_root(&[], true).as_deref(), Some("mounting bpffs at /sys/fs/bpf"));
    }
}
