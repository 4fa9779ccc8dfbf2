//! Becoming root, and stepping down again for what needs no root.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::lchown, process::CommandExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::machine;

/// Holds `UID:GID` of the user that started us, across sudo.
const CALLER: &str = "OVERLAY_XTASK_CALLER";

/// Variables that sudo may drop or set anew, and that select the compiler and its output folder.
const KEPT: [&str; 7] =
    ["PATH", "HOME", "CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];

/// Returns when this process is root. Otherwise starts it again with sudo, in its place.
///
/// # Errors
/// There is no sudo, or it cannot be started.
pub fn require(why: &str) -> Result<()> {
    let (uid, gid) = ids()?;
    if uid == 0 {
        return Ok(());
    }
    let command = env::args().nth(1).unwrap_or_default();
    if machine::find_program("sudo").is_none() {
        bail!("cargo xtask {command} needs root ({why}), and there is no sudo: run it as root");
    }
    eprintln!("xtask: {why}: that needs root, so this runs again with sudo");
    let kept = KEPT.iter().filter_map(|name| Some((*name, env::var_os(name)?)));
    let program = env::current_exe().context("cannot tell the path of this program")?;
    let error = Command::new("sudo")
        .args(["-E", "env"])
        .args(assignments(kept, uid, gid))
        .arg(program)
        .args(env::args_os().skip(1))
        .exec();
    Err(error).context("cannot run sudo")
}

/// Whether this process is root.
pub fn is_root() -> bool {
    ids().is_ok_and(|(uid, _)| uid == 0)
}

/// Makes a command run as the user that started us, if sudo did.
pub fn step_down(command: &mut Command) {
    let caller = env::var(CALLER).ok();
    if let Some((uid, gid)) = caller.as_deref().and_then(parse_caller)
        && is_root()
    {
        // Dropping the user id drops root's supplementary groups as well.
        command.uid(uid).gid(gid);
    }
}

/// Gives a folder and all its content to the user that started us, if sudo did.
///
/// # Errors
/// A file cannot be read or given away.
pub fn give_back(folder: &Path) -> Result<()> {
    match env::var(CALLER).ok().as_deref().and_then(parse_caller) {
        Some(caller) if ids()?.0 == 0 => give(folder, caller),
        _ => Ok(()),
    }
}

fn give(path: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    lchown(path, Some(uid), Some(gid)).with_context(|| path.display().to_string())?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            give(&entry?.path(), (uid, gid))?;
        }
    }
    Ok(())
}

fn assignments<'a>(
    kept: impl Iterator<Item = (&'a str, OsString)>,
    uid: u32,
    gid: u32,
) -> Vec<OsString> {
    let caller = (CALLER, format!("{uid}:{gid}").into());
    kept.chain([caller])
        .map(|(name, value)| {
            let mut assignment = OsString::from(name);
            assignment.push("=");
            assignment.push(value);
            assignment
        })
        .collect()
}

fn parse_caller(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// The effective user and group.
fn ids() -> Result<(u32, u32)> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    parse_ids(&status).context("/proc/self/status has no Uid and Gid lines")
}

/// `Uid:` and `Gid:` are followed by the real, effective, saved and filesystem id (proc(5)).
fn parse_ids(status: &str) -> Option<(u32, u32)> {
    let effective = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((effective("Uid:")?, effective("Gid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_ids_count() {
        let status = "Name:\txtask\nUid:\t1000\t0\t0\t0\nGid:\t100\t4\t4\t4\n";
        assert_eq!(parse_ids(status), Some((0, 4)));
        assert_eq!(parse_ids("Name:\txtask\n"), None);
    }

    #[test]
    fn the_caller_and_the_kept_variables_pass_through_sudo_as_assignments() {
        let kept = [("PATH", OsString::from("/a b:/c"))];
        let passed = assignments(kept.into_iter(), 1000, 100);
        assert_eq!(passed, ["PATH=/a b:/c", "OVERLAY_XTASK_CALLER=1000:100"]);
        assert_eq!(parse_caller("1000:100"), Some((1000, 100)));
        assert_eq!(parse_caller("root"), None);
    }
}
