//! The files of the booted machine: busybox, the tools of the tests, the test programs, each with
//! its shared libraries, and the modules of its kernel.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    cpio::Archive,
    modules::{self, Module},
};
use crate::machine;

/// Tools that the suites start. Busybox has programs of the same names that know less.
const TOOLS: [&str; 6] = ["ip", "tc", "ethtool", "nsenter", "unshare", "mount"];

/// Further tools that comparing services needs.
pub const TO_COMPARE: [&str; 2] = ["bridge", "ipvsadm"];

/// The first process.
const INIT: &str = include_str!("init.sh");

/// The folder of the programs under test. Programs in cargo's `deps` folder look for the others one
/// level up, as in cargo's target folder.
const PROGRAMS: &str = "/overlay";

/// One program to run in the machine.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// The program on this machine.
    pub program: PathBuf,
    /// Its place below [`PROGRAMS`].
    pub place: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// Writes the initial file system for a probe: it boots and reports so.
pub fn write_probe(archive: &Path, busybox: &Path) -> Result<()> {
    let mut out = create(archive)?;
    add_base(&mut out, busybox)?;
    out.finish().map(drop).with_context(|| archive.display().to_string())
}

/// Writes the initial file system that runs the steps.
///
/// `base` is busybox and the folder of the kernel's modules; `beside` are programs that the steps
/// start; `also` are further tools of this machine, and further modules.
///
/// # Errors
/// Something to put in cannot be read.
pub fn write(
    archive: &Path,
    base: (&Path, &Path),
    steps: &[Step],
    beside: &[PathBuf],
    also: (&[&str], &[&str]),
) -> Result<()> {
    let (busybox, folder) = base;
    let mut out = create(archive)?;
    add_base(&mut out, busybox)?;
    add_tools(&mut out, also.0)?;
    let order: Vec<String> = add_modules(&mut out, modules::collect(folder, busybox, also.1)?)?;
    out.file(Path::new("/modules/order"), lines(&order).as_bytes())?;
    let stripped = tempfolder(archive)?;
    for step in steps {
        add_stripped(&mut out, &step.program, &step.place, &stripped)?;
    }
    for program in beside {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        add_stripped(&mut out, program, &name, &stripped)?;
    }
    fs::remove_dir_all(&stripped)?;
    out.file(Path::new("/overlay/plan"), plan(steps).as_bytes())?;
    out.finish().map(drop).with_context(|| archive.display().to_string())
}

/// `NAME PROGRAM ARGUMENTS` for each step.
fn plan(steps: &[Step]) -> String {
    let line = |step: &Step| {
        let program = format!("{PROGRAMS}/{}", step.place);
        let words = [step.name.as_str(), &program].into_iter().map(str::to_owned);
        words.chain(step.arguments.iter().cloned()).collect::<Vec<_>>().join(" ")
    };
    lines(&steps.iter().map(line).collect::<Vec<_>>())
}

fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text}\n")).collect()
}

fn create(archive: &Path) -> Result<Archive<BufWriter<File>>> {
    let file = File::create(archive).with_context(|| archive.display().to_string())?;
    Ok(Archive::new(BufWriter::new(file)))
}

fn tempfolder(archive: &Path) -> Result<PathBuf> {
    let folder = archive.with_extension("stripped");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

type Out = Archive<BufWriter<File>>;

fn add_base(out: &mut Out, busybox: &Path) -> Result<()> {
    out.file(Path::new("/init"), INIT.as_bytes())?;
    add_program(out, busybox, Path::new("/bin/busybox"))?;
    add_tools(out, &TOOLS)?;
    // `overlay run` binds its own over these.
    out.file(Path::new("/etc/resolv.conf"), b"")?;
    out.file(Path::new("/etc/hosts"), b"127.0.0.1 localhost\n")?;
    out.file(Path::new("/etc/hostname"), b"vm\n")?;
    Ok(())
}

fn add_tools(out: &mut Out, tools: &[&str]) -> Result<()> {
    for tool in tools {
        let path = machine::find_program(tool).with_context(|| format!("there is no {tool}"))?;
        add_program(out, &path, &Path::new("/usr/sbin").join(tool))?;
    }
    Ok(())
}

fn add_modules(out: &mut Out, modules: Vec<Module>) -> Result<Vec<String>> {
    let mut order = Vec::new();
    for (name, content) in modules {
        out.file(&Path::new("/modules").join(&name), &content)?;
        order.push(name);
    }
    Ok(order)
}

/// A debug build is several times larger with its symbols, and the machine holds it in memory.
fn add_stripped(out: &mut Out, program: &Path, place: &str, folder: &Path) -> Result<()> {
    let target = Path::new(PROGRAMS).join(place);
    if out.has(&target) {
        return Ok(());
    }
    let name = program.file_name().context("a program's name")?;
    let stripped = folder.join(name);
    let status = machine::command(Path::new("strip"))
        .arg("-o")
        .args([&stripped, program])
        .status()
        .context("cannot run strip (Debian package binutils)")?;
    if !status.success() {
        bail!("strip {} ended with {status}", program.display());
    }
    add_program(out, &stripped, &target)
}

fn add_program(out: &mut Out, program: &Path, target: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    out.file(target, &read(program)?)?;
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
        if !out.has(&library) {
            out.file(&library, &read(&library)?)?;
        }
    }
    Ok(())
}

/// The paths in `libc.so.6 => /lib/libc.so.6 (0x7f..)` and `/lib64/ld.so (0x7f..)`; a static
/// program has none.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let of_line =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    ldd.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_ldd_found() {
        let shown = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = libraries(shown);
        assert_eq!(
            found,
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libmnl.so.0"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2"),
            ]
        );
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn the_plan_has_a_line_of_words_for_each_step() {
        let step = Step {
            name: "datapath_20_tunnel".into(),
            program: "/target/debug/deps/datapath_20_tunnel-1".into(),
            place: "deps/datapath_20_tunnel".into(),
            arguments: vec!["encap".into()],
        };
        assert_eq!(plan(&[step]), "datapath_20_tunnel /overlay/deps/datapath_20_tunnel encap\n");
    }
}
