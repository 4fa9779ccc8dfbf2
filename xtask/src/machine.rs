//! The programs and mounts of this machine.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The usual mount point of bpffs (the kernel makes the folder for it).
pub const BPFFS: &str = "/sys/fs/bpf";

/// PATH, and behind it the system's folders that a user's PATH may lack (`ip` and `bpftool` are in
/// /usr/sbin).
pub fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    complete(&path)
}

fn complete(path: &OsStr) -> OsString {
    let mut folders: Vec<PathBuf> = env::split_paths(path).collect();
    for system in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from) {
        if !folders.contains(&system) {
            folders.push(system);
        }
    }
    // Only a folder with a colon in its name cannot be joined, and none came out of splitting.
    env::join_paths(folders).unwrap_or_else(|_| path.to_owned())
}

/// Finds a program in [`search_path`].
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A command that finds the system's tools. A bare program name is looked up in PATH.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// Whether a C program can be linked: rustc links host programs with `cc` and libc's start files.
pub fn has_c_toolchain() -> bool {
    let Some(cc) = find_program("cc") else { return false };
    let output = Command::new(cc).arg("-print-file-name=Scrt1.o").stdin(Stdio::null()).output();
    // For a missing file, cc prints the bare name.
    output.is_ok_and(|output| {
        let path = String::from_utf8_lossy(&output.stdout);
        Path::new(path.trim()).is_absolute()
    })
}

/// Whether a BPF file system is mounted at [`BPFFS`].
pub fn has_bpffs() -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounted_bpffs(&mounts))
}

fn mounted_bpffs(mounts: &str) -> bool {
    // If a folder has several mounts, the last one is visible.
    let mut at_folder = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, folder, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (folder == BPFFS).then_some(kind)
    });
    at_folder.next_back() == Some("bpf")
}

/// The names of the network interfaces of this process's namespace. sysfs would show those of the
/// namespace it was mounted in.
pub fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let mut names = listed_interfaces(&table);
    names.sort();
    names
}

fn listed_interfaces(table: &str) -> Vec<String> {
    // Two lines of headings, then `name: numbers`.
    let rows = table.lines().skip(2);
    rows.filter_map(|row| row.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_those_of_the_table() {
        let table = "Inter-|   Receive\n face |bytes packets\n    lo: 1 2 3\n  eth0: 4 5 6\n";
        assert_eq!(listed_interfaces(table), ["lo", "eth0"]);
        assert!(listed_interfaces("").is_empty());
    }

    #[test]
    fn bpffs_counts_only_at_its_place_and_uncovered() {
        let sysfs = "sysfs /sys sysfs rw 0 0\n";
        let bpf = "bpf /sys/fs/bpf bpf rw,mode=700 0 0\n";
        let elsewhere = "bpf /run/bpf bpf rw 0 0\n";
        let cover = "tmpfs /sys/fs/bpf tmpfs rw 0 0\n";
        assert!(mounted_bpffs(&[sysfs, bpf].concat()));
        assert!(!mounted_bpffs(&[sysfs, elsewhere].concat()));
        assert!(!mounted_bpffs(&[bpf, cover].concat()));
        assert!(mounted_bpffs(&[bpf, cover, bpf].concat()));
    }

    #[test]
    fn the_systems_folders_follow_the_users_own_and_come_once() {
        assert_eq!(
            complete(OsStr::new("/home/me/bin:/usr/bin")),
            "/home/me/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/sbin:/bin"
        );
    }

    #[test]
    fn a_program_is_found_and_a_made_up_one_is_not() {
        assert!(find_program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program("no-such-program-of-overlay"), None);
    }
}
