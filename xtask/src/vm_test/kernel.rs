//! Debian's cloud kernels: chosen, downloaded and unpacked, never installed.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::debian;

/// A kernel to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name: the release, as in the output of `uname -r`.
    pub name: String,
    /// Its image.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// Finds the kernel for `--kernel`: `6.1`, or a package or folder of the caller's.
///
/// # Errors
/// apt knows none, it cannot be fetched, or the path holds none.
pub fn find(asked: &str, cache: &Path) -> Result<Kernel> {
    let path = Path::new(asked);
    if path.is_dir() {
        return unpacked(path);
    }
    if path.is_file() {
        let name = path.file_stem().context("a package's name")?;
        let folder = cache.join(name);
        debian::unpack([path], &folder)?;
        return unpacked(&folder);
    }
    if !is_series(asked) {
        bail!(
            "--kernel {asked}: neither a series such as 6.1, nor a package (linux-image-*.deb), \
             nor a folder with boot/vmlinuz-* and lib/modules/*"
        );
    }
    if let Some(folder) = newest(cached(cache, asked)) {
        return unpacked(&cache.join(folder));
    }
    unpacked(&download(asked, cache)?)
}

fn is_series(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    numbers.len() == 2 && numbers.iter().all(|number| number.parse::<u16>().is_ok())
}

/// `linux-image-6.1.0-47-cloud-amd64` and the like; not -dbg, not -unsigned.
fn is_image_of(package: &str, series: &str) -> bool {
    package
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.strip_suffix("-cloud-amd64"))
        .and_then(|version| version.strip_prefix(series))
        .is_some_and(|rest| rest.starts_with('.'))
}

fn cached(cache: &Path, series: &str) -> Vec<String> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_image_of(name, series))
        .collect()
}

fn download(series: &str, cache: &Path) -> Result<PathBuf> {
    let names = debian::names("^linux-image-.*-cloud-amd64$")?;
    let known = names.into_iter().filter(|name| is_image_of(name, series)).collect();
    let Some(package) = newest(known) else {
        bail!(
            "apt knows no linux-image-{series}.*-cloud-amd64: run `apt-get update`, add the suite \
             that has it (bookworm, bookworm-backports), or give --kernel PATH"
        );
    };
    println!("vm-test: downloading {package} to boot it in QEMU; it is not installed");
    let folder = cache.join(&package);
    debian::fetch(&[package], &folder)?;
    Ok(folder)
}

fn unpacked(folder: &Path) -> Result<Kernel> {
    let only = |place: &str, prefix: &str| {
        let entries = fs::read_dir(folder.join(place)).into_iter().flatten().flatten();
        let starts = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        };
        entries.map(|entry| entry.path()).find(starts)
    };
    let image = only("boot", "vmlinuz-").with_context(|| {
        format!("{} has no boot/vmlinuz-*: unpack a kernel package there", folder.display())
    })?;
    let name = image.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|place| folder.join(place).join(&name))
        .find(|path| path.is_dir())
        .with_context(|| format!("{} has no lib/modules/{name}", folder.display()))?;
    Ok(Kernel { name, image, modules })
}

fn newest(mut names: Vec<String>) -> Option<String> {
    names.sort_by(|a, b| compare(a, b));
    names.pop()
}

/// Numbers in names compare as numbers.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_of_the_series_count_and_the_newest_is_taken() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-47-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
        ];
        let of = |series: &str| {
            newest(names.iter().filter(|n| is_image_of(n, series)).map(|n| (*n).into()).collect())
        };
        assert_eq!(of("6.1").unwrap(), "linux-image-6.1.0-47-cloud-amd64");
        assert_eq!(of("6.12").unwrap(), "linux-image-6.12.9+deb12-cloud-amd64");
        assert_eq!(of("6.6"), None);
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_what_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let error = find("sixpointone", dir.path()).unwrap_err().to_string();
        assert!(error.contains("a series such as 6.1"), "{error}");
        let error = find(dir.path().to_str().unwrap(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("has no boot/vmlinuz-*"), "{error}");
    }

    #[test]
    fn an_unpacked_kernel_is_known_by_its_release() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("boot")).unwrap();
        fs::write(dir.path().join("boot/vmlinuz-6.1.0-1-cloud-amd64"), "").unwrap();
        fs::create_dir_all(dir.path().join("usr/lib/modules/6.1.0-1-cloud-amd64")).unwrap();
        let kernel = find(dir.path().to_str().unwrap(), dir.path()).unwrap();
        assert_eq!(kernel.name, "6.1.0-1-cloud-amd64");
    }
}
