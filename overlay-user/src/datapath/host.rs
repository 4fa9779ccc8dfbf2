//! The features that the host must offer, and their places.

use std::{
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DatapathError;
use crate::paths::Paths;

/// Oldest kernel the datapath is made for: the long-term one that the oldest supported
/// distributions run.
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Where bpffs is mounted by everyone.
const BPFFS: &str = "/sys/fs/bpf";

/// Kernel types that programs are checked against at load.
const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Checks that the datapath can be loaded, and mounts bpffs when it is missing at its usual place.
///
/// # Errors
/// [`DatapathError::Unsupported`] names the missing feature and the remedy.
pub fn preflight(paths: &Paths) -> Result<(), DatapathError> {
    check_capabilities(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())?;
    check_kernel(kernel_version())?;
    if !Path::new(VMLINUX_BTF).exists() {
        return Err(unsupported(
            format!("this kernel has no type information ({VMLINUX_BTF})"),
            "use one built with CONFIG_DEBUG_INFO_BTF=y, as distributions' kernels are",
        ));
    }
    check_bpffs(&paths.pin_dir)
}

/// The capabilities that loading, attaching and entering namespaces need: bit, name.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];

fn check_capabilities(status: &str) -> Result<(), DatapathError> {
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .ok_or_else(|| {
            unsupported("/proc/self/status says nothing about capabilities", "mount /proc")
        })?;
    let lacking: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(unsupported(format!("this process lacks {}", lacking.join(", ")), "run it as root (sudo)"))
}

fn check_kernel(version: (u32, u32)) -> Result<(), DatapathError> {
    if version >= OLDEST_KERNEL {
        return Ok(());
    }
    let (major, minor) = OLDEST_KERNEL;
    Err(unsupported(
        format!("this kernel is {}.{}, the datapath needs {major}.{minor}", version.0, version.1),
        "boot a newer kernel",
    ))
}

/// Major and minor version of the running kernel; (0, 0) when it does not say.
pub fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    release.ok().and_then(|release| parse_release(&release)).unwrap_or_default()
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn check_bpffs(pin_dir: &Path) -> Result<(), DatapathError> {
    if !pin_dir.is_absolute() {
        let what = format!("the pin directory {} is no absolute path", pin_dir.display());
        return Err(unsupported(what, format!("give one below {BPFFS} (--pin-dir)")));
    }
    // bpffs refuses names with a dot (kernel/bpf/inode.c, bpf_lookup), with a bare EPERM.
    let below = existing_parent(pin_dir);
    if pin_dir.strip_prefix(below).is_ok_and(|rest| rest.to_string_lossy().contains('.')) {
        return Err(unsupported(
            format!("the pin directory {} has a dot in its name", pin_dir.display()),
            "bpffs allows none; choose another --pin-dir",
        ));
    }
    if is_bpffs(below) {
        return Ok(());
    }
    let shown = pin_dir.display();
    if !pin_dir.starts_with(BPFFS) {
        return Err(unsupported(
            format!("the pin directory {shown} is not in a bpffs"),
            format!("choose one below {BPFFS} (--pin-dir), or mount one: `mount -t bpf bpf DIR`"),
        ));
    }
    mount_bpffs(Path::new(BPFFS))?;
    if is_bpffs(existing_parent(pin_dir)) {
        return Ok(());
    }
    Err(unsupported(
        format!("the pin directory {shown} is on another file system mounted below {BPFFS}"),
        "unmount that, or choose another --pin-dir",
    ))
}

/// Mounts bpffs on `directory`, which is locked meanwhile: another daemon that starts at the same
/// time could mount on top, which would hide the pins of the first one.
fn mount_bpffs(directory: &Path) -> Result<(), DatapathError> {
    let failed = |e: String| {
        unsupported(
            format!("bpffs is not mounted on {} and cannot be: {e}", directory.display()),
            format!("run `mount -t bpf bpf {}` as root on the host", directory.display()),
        )
    };
    let file = std::fs::File::open(directory).map_err(|e| failed(e.to_string()))?;
    file.lock().map_err(|e| failed(e.to_string()))?;
    if is_bpffs(directory) {
        return Ok(());
    }
    let flags = nix::mount::MsFlags::MS_NOSUID
        | nix::mount::MsFlags::MS_NODEV
        | nix::mount::MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), directory, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|e| failed(e.desc().to_owned()))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

fn existing_parent(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"))
}

/// Where cgroup v2 is mounted, its root first; `None` on hosts with version 1 only.
pub fn cgroup2_mount() -> Option<PathBuf> {
    parse_cgroup2(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// Lines are `id parent device root mountpoint options.. - type source options`, proc(5).
fn parse_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let of_root = *fields.get(3)? == "/";
        kind.starts_with("cgroup2 ").then_some((of_root, unescape(fields.get(4)?)))
    });
    // If there are several, take one that shows the whole tree.
    let mut mounts: Vec<_> = mounts.collect();
    mounts.sort_by_key(|(of_root, _)| !of_root);
    mounts.into_iter().next().map(|(_, path)| path)
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(path: &str) -> PathBuf {
    let mut text = path.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escaped, plain);
    }
    PathBuf::from(text)
}

/// Cookie of the calling thread's network namespace, as `bpf_get_netns_cookie` returns it.
///
/// # Errors
/// [`DatapathError::Kernel`] when the kernel does not tell (before 5.14).
pub fn netns_cookie() -> Result<u64, DatapathError> {
    let failed = |e: std::io::Error| DatapathError::Kernel {
        action: "read the cookie of the network namespace".to_owned(),
        reason: e.to_string(),
    };
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|e| failed(e.into()))?;
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as nix::libc::socklen_t;
    // SAFETY: the option is a u64, and the kernel writes at most `size` bytes to where `cookie` is.
    let status = unsafe {
        nix::libc::getsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if status < 0 { Err(failed(std::io::Error::last_os_error())) } else { Ok(cookie) }
}

/// asm-generic/socket.h; the libc crate has it for a few targets only.
const SO_NETNS_COOKIE: i32 = 71;

fn unsupported(what: impl Into<String>, remedy: impl Into<String>) -> DatapathError {
    DatapathError::Unsupported { what: what.into(), remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    #[test]
    fn lacking_capabilities_are_named() {
        let status = |bits: &str| format!("Name:\toverlay\nCapEff:\t{bits}\nCapBnd:\tff\n");
        check_capabilities(&status("000001ffffffffff")).expect("root has them all");
        let nobody = check_capabilities(&status("0000000000000000")).expect_err("refused");
        assert_eq!(
            nobody.to_string(),
            "this process lacks CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF; run it as root (sudo)"
        );
        let netadmin = check_capabilities(&status("0000008000001000")).expect_err("refused");
        assert!(netadmin.to_string().contains("lacks CAP_SYS_ADMIN;"), "{netadmin}");
        assert!(check_capabilities("").is_err());
    }

    #[test]
    fn old_kernels_are_refused_with_their_version() {
        assert_eq!(parse_release("6.18.44-cloud-amd64"), Some((6, 18)));
        assert_eq!(parse_release("6.1"), Some((6, 1)));
        assert_eq!(parse_release("5.15.0-1-generic"), Some((5, 15)));
        assert_eq!(parse_release("unknown"), None);
        check_kernel((6, 1)).expect("new enough");
        check_kernel((7, 0)).expect("new enough");
        let old = check_kernel((5, 15)).expect_err("refused");
        assert_eq!(
            old.to_string(),
            "this kernel is 5.15, the datapath needs 6.1; boot a newer kernel"
        );
    }

    #[test]
    fn pin_directories_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let elsewhere = check_bpffs(&dir.path().join("pins")).expect_err("no bpffs");
        assert!(elsewhere.to_string().contains("is not in a bpffs"), "{elsewhere}");
        let dotted = check_bpffs(&dir.path().join("overlay.1")).expect_err("a dot");
        assert!(dotted.to_string().contains("has a dot"), "{dotted}");
        let relative = check_bpffs(Path::new("pins")).expect_err("relative");
        assert!(relative.to_string().contains("no absolute path"), "{relative}");
    }

    #[test]
    fn cgroup2_is_found_among_the_mounts() {
        let mountinfo = "\
24 30 0:22 / /proc rw - proc proc rw
41 33 0:37 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
43 33 0:39 /sub /run/part rw shared:9 - cgroup2 cgroup2 rw
42 33 0:38 / /sys/fs/a\\040b rw,relatime shared:8 - cgroup2 cgroup2 rw,nsdelegate
";
        assert_eq!(parse_cgroup2(mountinfo), Some(PathBuf::from("/sys/fs/a b")));
        assert_eq!(parse_cgroup2("24 30 0:22 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn every_namespace_has_its_own_cookie() {
        if !is_root("making network namespaces") {
            return;
        }
        let here = netns_cookie().expect("a cookie");
        assert_eq!(netns_cookie().expect("a cookie"), here);
        let there = TestNetns::new().run(|| netns_cookie().expect("a cookie"));
        assert_ne!(here, there);
    }
}
