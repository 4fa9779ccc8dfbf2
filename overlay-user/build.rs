//! Builds the eBPF programs and leaves the object in `OUT_DIR/overlay-datapath`, from where the
//! crate embeds it.

use std::{env, path::PathBuf};

use overlay_build::{Built, Toolchain};

fn main() {
    for source in overlay_build::sources() {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    println!("cargo::rerun-if-env-changed={}", overlay_build::OBJECT_VARIABLE);

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let log = env::var_os("CARGO_FEATURE_LOG").is_some();
    let features: &[&str] = if log { &["log"] } else { &[] };
    match overlay_build::build_object(&out_dir.join(overlay_build::OBJECT), features) {
        Ok(built) => {
            watch_tools(&built);
            say("warning", built.warnings.iter().map(String::as_str));
        }
        // Cargo fails the build for it, and shows no more than this as long as we exit with
        // success.
        Err(error) => say("error", [error.to_string().as_str()]),
    }
}

/// Another compiler or linker may make another object.
fn watch_tools(built: &Built) {
    let tool = match &built.toolchain {
        Toolchain::Prebuilt(object) => object,
        Toolchain::Sysroot(compiler) | Toolchain::BuildStd(compiler) => &compiler.rustc,
    };
    println!("cargo::rerun-if-changed={}", tool.display());
    if let Some(linker) = &built.linker {
        println!("cargo::rerun-if-changed={}", linker.path.display());
    }
}

/// Cargo takes one line at a time.
fn say<'a>(level: &str, texts: impl IntoIterator<Item = &'a str>) {
    for line in texts.into_iter().flat_map(str::lines) {
        println!("cargo::{level}={line}");
    }
}
