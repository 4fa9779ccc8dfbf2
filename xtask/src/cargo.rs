//! Calls of cargo in this workspace, and the results of its builds.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{object, root};

/// A program that cargo has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// The folder of its package.
    pub package: PathBuf,
    /// The name of its target.
    pub name: String,
    /// `lib`, `bin`, `test`, ..
    pub kind: String,
    /// Whether it is a test harness.
    pub test: bool,
    /// The program.
    pub executable: PathBuf,
}

impl Product {
    /// Its name for readers: the package's folder, and the target if the package has several.
    pub fn label(&self) -> String {
        let package = self.package.file_name().unwrap_or_default().to_string_lossy();
        match self.kind.as_str() {
            "lib" => format!("{package} (library)"),
            kind => format!("{package} ({kind} {})", self.name),
        }
    }
}

/// The cargo that runs us, in the workspace's root, as the user that started us.
pub fn command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(overlay_build::workspace_root()).stdin(Stdio::null());
    for (name, _) in env::vars_os().filter(|(name, _)| is_about_us(name)) {
        command.env_remove(name);
    }
    root::step_down(&mut command);
    command
}

/// Whether a variable describes xtask as the program that `cargo run` started. Build scripts watch
/// some of these variables, and would run again each time a build changes between here and the
/// user's shell.
fn is_about_us(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Runs `cargo build` and lists the programs it has made. Its progress and the compiler's messages
/// go to stderr.
///
/// # Errors
/// Cargo cannot be run or fails.
pub fn build<S: AsRef<OsStr>>(args: &[S]) -> Result<Vec<Product>> {
    let args: Vec<&OsStr> =
        [OsStr::new("build")].into_iter().chain(args.iter().map(AsRef::as_ref)).collect();
    match build_what_can_be(&args)? {
        (products, true) => Ok(products),
        (_, false) => bail!("the build failed; cargo's messages are above"),
    }
}

/// Like [`build`], with `build` itself or another command that builds as the first argument. When
/// cargo fails, lists the finished products all the same, and returns `false` with them.
///
/// # Errors
/// Cargo cannot be run.
pub fn build_what_can_be<S: AsRef<OsStr>>(args: &[S]) -> Result<(Vec<Product>, bool)> {
    object::ahead();
    let output = command()
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok((messages.lines().filter_map(parse_product).collect(), output.status.success()))
}

/// The binary with this name among the products.
pub fn binary(products: &[Product], name: &str) -> Result<PathBuf> {
    products
        .iter()
        .find(|product| product.kind == "bin" && !product.test && product.name == name)
        .map(|product| product.executable.clone())
        .with_context(|| format!("the workspace has no binary named {name}"))
}

fn parse_product(line: &str) -> Option<Product> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let target = &message["target"];
    Some(Product {
        package: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        name: target["name"].as_str()?.to_owned(),
        kind: target["kind"][0].as_str()?.to_owned(),
        test: message["profile"]["test"].as_bool()?,
        executable: message["executable"].as_str()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: &str = r#"{"reason":"compiler-artifact","manifest_path":"/w/overlay-user/Cargo.toml","target":{"name":"overlay","kind":["lib"]},"profile":{"test":false},"executable":null}"#;
    const UNIT: &str = r#"{"reason":"compiler-artifact","manifest_path":"/w/overlay-user/Cargo.toml","target":{"name":"overlay","kind":["lib"]},"profile":{"test":true},"executable":"/w/target/debug/deps/overlay-1"}"#;
    const BINARY: &str = r#"{"reason":"compiler-artifact","manifest_path":"/w/overlay-user/Cargo.toml","target":{"name":"overlay","kind":["bin"]},"profile":{"test":false},"executable":"/w/target/debug/overlay"}"#;

    #[test]
    fn programs_are_told_from_libraries_and_test_harnesses_from_binaries() {
        let products: Vec<_> =
            [LIBRARY, UNIT, BINARY, "words"].into_iter().filter_map(parse_product).collect();
        assert_eq!(products.len(), 2, "{products:?}");
        assert_eq!(products[0].package, Path::new("/w/overlay-user"));
        assert!(products[0].test);
        assert_eq!(binary(&products, "overlay").unwrap(), Path::new("/w/target/debug/overlay"));
        assert!(binary(&products, "overlay-demo").is_err());
    }

    #[test]
    fn what_cargo_run_says_about_xtask_is_kept_from_the_build() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
            assert!(is_about_us(OsStr::new(name)), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TARGET_DIR", "PATH"] {
            assert!(!is_about_us(OsStr::new(name)), "{name}");
        }
    }
}
