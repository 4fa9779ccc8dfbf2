//! The kernel modules that the datapath needs, each after those it depends on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The modules that Debian builds: links of containers and of the tests' switch, the VXLAN device,
/// TC programs before tcx (Linux 6.6), and SCTP, which containers use.
pub const WANTED: [&str; 6] = ["veth", "vxlan", "bridge", "sch_ingress", "cls_bpf", "sctp"];

/// The modules of IPVS, which services are compared with.
pub const IPVS: [&str; 2] = ["ip_vs", "ip_vs_rr"];

/// A module's file name without folder and compression, and its content.
pub type Module = (String, Vec<u8>);

/// Reads the wanted modules, `also` among them, and their dependencies below a folder, in the order
/// to load them. `busybox` unpacks them.
///
/// # Errors
/// A module cannot be read, or it needs a module that is missing.
pub fn collect(folder: &Path, busybox: &Path, also: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    list(folder, &mut files)?;
    let mut ordered = Vec::new();
    let mut seen = BTreeSet::new();
    for name in WANTED.iter().chain(also).copied() {
        // A kernel may have it built in; the programs' own words tell if it has not.
        if files.contains_key(name) {
            add(name, (&files, busybox), &mut seen, &mut ordered)?;
        }
    }
    Ok(ordered)
}

fn add(
    name: &str,
    (files, busybox): (&BTreeMap<String, PathBuf>, &Path),
    seen: &mut BTreeSet<String>,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(path) = files.get(name) else {
        bail!("a kernel module depends on {name}, and there is no such module");
    };
    let content = read(path, busybox)?;
    for needed in depends(&content) {
        add(&needed, (files, busybox), seen, ordered)?;
    }
    ordered.push((format!("{name}.ko"), content));
    Ok(())
}

fn list(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            list(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `crc32c-intel.ko.xz` is the module crc32c_intel.
fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once('.')?;
    matches!(rest, "ko" | "ko.xz").then(|| name.replace('-', "_"))
}

fn read(path: &Path, busybox: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| path.display().to_string());
    }
    let output = Command::new(busybox).arg("xzcat").arg(path).output()?;
    if !output.status.success() {
        bail!("busybox xzcat {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// The section .modinfo holds NUL-terminated `key=value`; `depends` names modules with commas.
fn depends(module: &[u8]) -> Vec<String> {
    let value = module.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(value.unwrap_or_default()).replace('-', "_");
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
    }

    #[test]
    fn modules_follow_what_they_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        for (name, needs) in [
            ("net/vxlan", "ip6_udp_tunnel,udp-tunnel"),
            ("net/ip6_udp_tunnel", ""),
            ("net/udp_tunnel", "ip6_udp_tunnel"),
            ("veth", ""),
            ("unwanted", "missing"),
        ] {
            let path = dir.path().join(format!("{name}.ko"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module(needs)).unwrap();
        }
        let names: Vec<String> = collect(dir.path(), Path::new("busybox"), &[])
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["veth.ko", "ip6_udp_tunnel.ko", "udp_tunnel.ko", "vxlan.ko"]);
    }

    #[test]
    fn a_missing_dependency_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bridge.ko"), module("stp,llc")).unwrap();
        let error = collect(dir.path(), Path::new("busybox"), &[]).unwrap_err().to_string();
        assert!(error.contains("depends on stp"), "{error}");
    }
}
