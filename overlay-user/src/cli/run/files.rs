//! The files in `/etc` that a container has of its own.
//!
//! They live in a tmpfs of the child's mount namespace that has no name any more once they are
//! bound, so there is nothing to remove when the container ends, however it ends.

use std::{
    fs::File as OpenFile,
    io,
    net::{IpAddr, Ipv4Addr},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::control::{Etc, File};
use crate::api::LocalContainer;

impl File {
    fn new(path: &str, text: String, needed: bool) -> Self {
        Self { path: PathBuf::from(path), text, needed }
    }

    /// `/etc/resolv.conf` of a container: the daemon answers inside its namespace.
    pub(super) fn resolv_conf() -> Self {
        let text = "nameserver 127.0.0.11\noptions ndots:0\n".to_owned();
        Self::new("/etc/resolv.conf", text, true)
    }

    fn hostname(name: &str) -> Self {
        Self::new("/etc/hostname", format!("{name}\n"), false)
    }

    fn hosts(lines: &str) -> Self {
        let text =
            format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{lines}");
        Self::new("/etc/hosts", text, false)
    }
}

/// `/etc/hostname` and `/etc/hosts` of a container with addresses.
pub(super) fn with_network(hostname: &str, name: &str, addresses: &[IpAddr]) -> Vec<File> {
    let names = if hostname == name { name.to_owned() } else { format!("{hostname} {name}") };
    let lines: String = addresses.iter().map(|ip| format!("{ip} {names}\n")).collect();
    vec![File::hostname(hostname), File::hosts(&lines)]
}

/// The same for a namespace with only `lo`; without a host name the host's files stay.
pub(super) fn without_network(hostname: Option<&String>) -> Vec<File> {
    match hostname {
        Some(name) => with_network(name, name, &[Ipv4Addr::new(127, 0, 1, 1).into()]),
        None => vec![],
    }
}

/// The files of a container that shares the namespace of `target`: the same as those of `target`.
pub(super) fn of_container(target: &LocalContainer) -> Etc {
    // Through the other's root its own mounts are seen. It may have been attached from elsewhere
    // and have no such files; then they follow from its name.
    let theirs = |file: &str| {
        let path = format!("/proc/{}/root/etc/{file}", target.pid?);
        std::fs::read_to_string(path).ok()
    };
    let hostname = theirs("hostname").map(|text| text.trim().to_owned());
    let hostname = hostname.filter(|name| !name.is_empty()).unwrap_or_else(|| target.name.clone());
    let addresses: Vec<_> = target.interfaces.iter().flat_map(|i| i.addresses()).collect();
    let mut files = with_network(&hostname, &target.name, &addresses);
    if let Some(text) = theirs("hosts") {
        files[1].text = text;
    }
    files.push(File::resolv_conf());
    Etc { hostname: Some(hostname), files }
}

/// Why the files cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// There is nothing to mount over.
    #[error(
        "{path} {what}, so the container cannot be given one of its own; create it (it may be \
         empty)"
    )]
    Missing {
        /// The file.
        path: String,
        /// The problem.
        what: String,
    },
    /// The system refused.
    #[error("{action}: {source}")]
    System {
        /// The operation that failed.
        action: String,
        /// The system's error.
        source: io::Error,
    },
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> FilesError {
    let action = action.into();
    move |source| FilesError::System { action, source }
}

/// Shows files in place of the host's, in a mount namespace of our own.
///
/// # Errors
/// [`FilesError`] names the missing file or the rejected step. The namespace must not be used then.
pub(super) fn show(files: &[File]) -> Result<(), FilesError> {
    // Mounts of the host go on to appear here, ours do not appear there.
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|e| failed("make mounts private")(e.into()))?;
    let targets = open_targets(files)?;
    if targets.is_empty() {
        return Ok(());
    }
    // The tmpfs covers /etc while the files are bound: the targets were opened before, and are
    // reached through their descriptors.
    let stage = Path::new("/etc");
    let options = Some("mode=0755,size=1m");
    mount(Some("overlay-run"), stage, Some("tmpfs"), MsFlags::empty(), options)
        .map_err(|e| failed("mount a tmpfs")(e.into()))?;
    let bound = bind(&targets, stage);
    umount2(stage, MntFlags::MNT_DETACH).map_err(|e| failed("unmount the tmpfs")(e.into()))?;
    bound
}

/// Opens the target of a mount. A symbolic link is followed to the file behind it.
fn open_targets(files: &[File]) -> Result<Vec<(&File, OpenFile)>, FilesError> {
    let mut targets = Vec::new();
    for file in files {
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(&file.path);
        match opened {
            Ok(target) => targets.push((file, target)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !file.needed => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing(&file.path)),
            Err(e) => return Err(failed(format!("open {}", file.path.display()))(e)),
        }
    }
    Ok(targets)
}

fn missing(path: &Path) -> FilesError {
    let what = match std::fs::read_link(path) {
        Ok(target) => format!("points to {}, which does not exist", target.display()),
        Err(_) => "does not exist".to_owned(),
    };
    FilesError::Missing { path: path.display().to_string(), what }
}

/// Writes each file to the stage and binds it over its target.
fn bind(targets: &[(&File, OpenFile)], stage: &Path) -> Result<(), FilesError> {
    for (number, (file, target)) in targets.iter().enumerate() {
        let shown = file.path.display();
        let source = stage.join(number.to_string());
        std::fs::write(&source, &file.text).map_err(failed(format!("write {shown}")))?;
        let target = format!("/proc/self/fd/{}", target.as_raw_fd());
        mount(Some(&source), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| failed(format!("mount over {shown}"))(e.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointState, Id};

    #[test]
    fn hosts_names_the_container_at_each_of_its_addresses() {
        let files = with_network("db", "db", &[[10, 0, 0, 5].into(), [10, 0, 1, 9].into()]);
        assert_eq!(files[0].text, "db\n");
        assert_eq!(
            files[1].text,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
             10.0.0.5 db\n10.0.1.9 db\n"
        );
    }

    #[test]
    fn a_host_name_of_its_own_comes_first() {
        let files = with_network("primary", "db", &[[10, 0, 0, 5].into()]);
        assert!(files[1].text.ends_with("10.0.0.5 primary db\n"));
    }

    #[test]
    fn names_are_resolved_by_the_daemon() {
        let file = File::resolv_conf();
        assert_eq!(file.text, "nameserver 127.0.0.11\noptions ndots:0\n");
        assert!(file.needed);
    }

    #[test]
    fn who_shares_a_namespace_has_the_names_of_its_owner() {
        let target = LocalContainer {
            container: Id::random(),
            name: "web".to_owned(),
            netns: "/run/netns/web".to_owned(),
            pid: None,
            service: None,
            state: EndpointState::Running,
            interfaces: vec![],
        };
        let etc = of_container(&target);
        assert_eq!(etc.hostname.as_deref(), Some("web"));
        assert_eq!(etc.files.last(), Some(&File::resolv_conf()));
    }

    #[test]
    fn a_dangling_link_is_told_from_a_missing_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("resolv.conf");
        assert!(missing(&path).to_string().contains("does not exist, so"));
        std::os::unix::fs::symlink("nowhere", &path).expect("a link");
        assert!(missing(&path).to_string().contains("points to nowhere, which does not exist"));
    }
}
