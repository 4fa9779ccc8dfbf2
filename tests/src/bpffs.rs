//! The objects pinned in a bpffs, and whether they still exist.

use std::{
    collections::BTreeSet,
    ffi::CString,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// The usual mount point of bpffs.
pub const ROOT: &str = "/sys/fs/bpf";

/// `enum bpf_cmd` of the kernel's uapi/linux/bpf.h.
const OBJ_GET: libc::c_long = 7;
const PROG_GET_NEXT_ID: libc::c_long = 11;
const MAP_GET_NEXT_ID: libc::c_long = 12;
const LINK_GET_NEXT_ID: libc::c_long = 31;

/// The beginning of `union bpf_attr` for the commands used here, zero-padded.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Attr([u64; 4]);

/// A map, program or link of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A map's id.
    Map(u32),
    /// A program's id.
    Program(u32),
    /// A link's id.
    Link(u32),
}

fn bpf(command: libc::c_long, attr: Attr) -> Result<OwnedFd, Errno> {
    // SAFETY: `attr` is initialized, lives through the call and has the stated size. The commands
    // used here only read it, and a path in it is NUL-terminated by its owner.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(&attr), size_of::<Attr>())
    };
    let fd = Errno::result(result)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts bpffs if it is not.
///
/// # Errors
/// The kernel rejects the mount.
pub fn ensure_mounted() -> anyhow::Result<()> {
    let is_bpffs = || statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    // Two processes that mount at once would hide each other's pins. The daemon takes this lock
    // too.
    let directory = std::fs::File::open(ROOT).context(ROOT)?;
    directory.lock().context(ROOT)?;
    if is_bpffs() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("bpf"), ROOT, Some("bpf"), flags, Some("mode=0700"));
    ensure!(mounted.is_ok() || is_bpffs(), "bpffs cannot be mounted at {ROOT}: {mounted:?}");
    Ok(())
}

/// The files below a directory.
pub fn pins(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(pins(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The object pinned at a path.
///
/// # Errors
/// If it cannot be opened.
pub fn pinned(path: &Path) -> anyhow::Result<Object> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr([name.as_ptr() as u64, 0, 0, 0]);
    let fd = bpf(OBJ_GET, attr).with_context(|| path.display().to_string())?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let field = |name: &str| -> Option<u32> {
        info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    // A link's fdinfo names its program too.
    field("link_id:")
        .map(Object::Link)
        .or_else(|| field("prog_id:").filter(|_| !info.contains("map_id:")).map(Object::Program))
        .or_else(|| field("map_id:").map(Object::Map))
        .with_context(|| format!("{} is neither map, program nor link:\n{info}", path.display()))
}

/// Id of the program in a pinned link.
///
/// # Errors
/// If it cannot be opened, or is no link.
pub fn program_of(link: &Path) -> anyhow::Result<u32> {
    let name = CString::new(link.as_os_str().as_bytes())?;
    let attr = Attr([name.as_ptr() as u64, 0, 0, 0]);
    let fd = bpf(OBJ_GET, attr).with_context(|| link.display().to_string())?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    ensure!(info.contains("link_id:"), "{} is no link:\n{info}", link.display());
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    id.with_context(|| format!("{} has no program:\n{info}", link.display()))
}

/// Everything pinned below a directory.
///
/// # Errors
/// If a pin cannot be opened.
pub fn objects(dir: &Path) -> anyhow::Result<BTreeSet<Object>> {
    pins(dir).iter().map(|path| pinned(path)).collect()
}

/// Whether the kernel still has an object. Ids are not reused before 2^31 objects were made.
///
/// The kernel's next id after the id before it tells this. Opening the object would disturb the
/// result: if a program array loses its last user twice in one moment, once because this function
/// closes it, the kernel never frees it (`prog_array_map_clear` counts itself for work that is
/// queued once; Linux 6.18).
///
/// # Errors
/// If the kernel cannot be asked.
pub fn exists(object: Object) -> anyhow::Result<bool> {
    let (command, id) = match object {
        Object::Map(id) => (MAP_GET_NEXT_ID, id),
        Object::Program(id) => (PROG_GET_NEXT_ID, id),
        Object::Link(id) => (LINK_GET_NEXT_ID, id),
    };
    let mut attr = crate::bpf::Attr::default().u32(0, id.saturating_sub(1));
    match attr.call(command) {
        Ok(_) => Ok(attr.read(4) == id),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{object:?}")),
    }
}
