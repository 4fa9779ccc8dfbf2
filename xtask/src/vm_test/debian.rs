//! Debian's packages, downloaded and unpacked into folders of ours: nothing is installed, so
//! nothing that is installed is in the way.

use std::{
    fs,
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{machine, packages};

/// The names of the packages that match a regular expression as a whole, from apt's lists. If the
/// lists are empty, as on a new machine, they are fetched first.
///
/// # Errors
/// There is no apt-cache.
pub fn names(pattern: &str) -> Result<Vec<String>> {
    let found = search(pattern)?;
    if !found.is_empty() {
        return Ok(found);
    }
    packages::update_lists()?;
    search(pattern)
}

fn search(pattern: &str) -> Result<Vec<String>> {
    let output = machine::command(Path::new("apt-cache"))
        .args(["search", "--names-only", pattern])
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-cache: kernels come from Debian's packages; give --kernel PATH")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    Ok(listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// `packages` and those of their dependencies that this machine lacks.
///
/// # Errors
/// apt does not know one of them.
pub fn with_dependencies(packages: &[&str]) -> Result<Vec<String>> {
    let simulate = || {
        machine::command(Path::new("apt-get"))
            .args(["install", "--simulate", "-qq", "--no-install-recommends"])
            .args(packages)
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")
    };
    let mut output = simulate()?;
    if !output.status.success() {
        packages::update_lists()?;
        output = simulate()?;
    }
    if !output.status.success() {
        bail!(
            "apt-get cannot tell what {} needs: {}",
            packages.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(to_install(&String::from_utf8_lossy(&output.stdout)))
}

/// The names in the lines `Inst NAME ..`.
fn to_install(simulated: &str) -> Vec<String> {
    let name =
        |line: &str| line.strip_prefix("Inst ")?.split_whitespace().next().map(str::to_owned);
    simulated.lines().filter_map(name).collect()
}

/// Downloads packages and unpacks them into `folder`, which is made anew. A folder that is there is
/// complete: they are unpacked beside it first.
///
/// # Errors
/// One cannot be fetched or unpacked.
pub fn fetch(packages: &[String], folder: &Path) -> Result<()> {
    let downloads = folder.with_extension(format!("download-{}", process::id()));
    fs::create_dir_all(&downloads)?;
    let status = machine::command(Path::new("apt-get"))
        .args(["download", "-qq"])
        .args(packages)
        .current_dir(&downloads)
        .stdin(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!(
            "apt-get download {} ended with {status}; its messages are above",
            packages.join(" ")
        );
    }
    let archives: Vec<_> = fs::read_dir(&downloads)?.flatten().map(|entry| entry.path()).collect();
    if archives.len() != packages.len() {
        bail!("apt-get download left {} files for {}", archives.len(), packages.join(" "));
    }
    unpack(archives.iter().map(|archive| archive.as_path()), folder)?;
    fs::remove_dir_all(&downloads)?;
    Ok(())
}

/// Unpacks packages into `folder`, beside the final place first: a folder that is there is
/// complete.
///
/// # Errors
/// One cannot be unpacked.
pub fn unpack<'a>(archives: impl IntoIterator<Item = &'a Path>, folder: &Path) -> Result<()> {
    let partial = folder.with_extension(format!("partial-{}", process::id()));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    for archive in archives {
        let status = Command::new("dpkg-deb")
            .arg("-x")
            .args([archive, partial.as_path()])
            .status()
            .context("cannot run dpkg-deb")?;
        if !status.success() {
            bail!("dpkg-deb -x {} ended with {status}", archive.display());
        }
    }
    let _ = fs::remove_dir_all(folder);
    fs::rename(&partial, folder)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_install_is_told_from_what_it_would_remove_and_set_up() {
        let simulated = "Remv qemu-utils [1:10.0]\nInst seabios (1.16 Debian:12 [all])\n\
                         Inst libfdt1 [1.5] (1.6 Debian:12 [amd64])\nConf seabios (1.16 [all])\n";
        assert_eq!(to_install(simulated), ["seabios", "libfdt1"]);
        assert!(to_install("").is_empty());
    }
}
