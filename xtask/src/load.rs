//! `cargo xtask load`

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{build, machine, root, setup, status};

/// Build the datapath, load it on this host, attach it to an interface and pin it.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask load --iface eth0
  cargo xtask load --iface eth0 --xdp native --pin-dir /sys/fs/bpf/try

Prints what is pinned, and the bpftool lines to look at it. The programs stay attached when the
command ends, until `cargo xtask unload`. Runs as `overlay datapath load`, with sudo when you are
not root; what is compiled for it still belongs to you.")]
pub struct Load {
    /// The interface on the underlay.
    #[arg(long, value_name = "IF")]
    iface: String,
    /// Also attach to XDP: natively on physical interfaces only (auto), always, by the generic
    /// hook, or not.
    #[arg(long, value_name = "MODE", value_parser = ["auto", "native", "generic", "off"])]
    xdp: Option<String>,
    /// The folder in bpffs for the pins.
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
}

impl Load {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        check_interface(&self.iface, &machine::interfaces())?;
        setup::ensure(setup::Scope::Run)?;
        root::require("loading eBPF programs")?;
        let mut overlay = machine::command(&build::overlay()?);
        if let Some(dir) = &self.pin_dir {
            overlay.arg("--pin-dir").arg(dir);
        }
        overlay.args(["datapath", "load", "--iface", &self.iface]);
        if let Some(mode) = &self.xdp {
            overlay.args(["--xdp", mode]);
        }
        overlay.status().map(status).context("cannot run overlay")
    }
}

/// Fails before a long build and a password prompt, not after.
fn check_interface(name: &str, present: &[String]) -> Result<()> {
    if !present.iter().any(|interface| interface == name) {
        bail!("there is no interface {name} on this host; it has: {}", present.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_interface_is_answered_with_those_there_are() {
        let present = ["eth0".to_owned(), "lo".to_owned()];
        assert!(check_interface("eth0", &present).is_ok());
        let error = check_interface("eth", &present).unwrap_err().to_string();
        assert_eq!(error, "there is no interface eth on this host; it has: eth0, lo");
    }
}
