//! The comparison of services with IPVS, in a booted machine: many build machines have kernels
//! without IPVS.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    Boot, Step, emulator,
    kernel::{self, Kernel},
    modules::IPVS,
    qemu,
    userland::{self, TO_COMPARE},
};
use crate::{cargo, machine, root, setup};

/// The name of the step.
pub const NAME: &str = "overlay-bench";

/// The paths of the results.
pub type Files<'a> = (Option<&'a Path>, Option<&'a Path>);

/// The client and the server of the comparison.
const TO_ASK: [&str; 2] = ["nginx", "wrk"];

/// The machine is off by then in any case: on an emulated machine, a round of everything takes many
/// minutes.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Debian's kernels zero memory when they hand it out, and the generator of frames pays for that:
/// Linux 6.1 does not give it back the pages of frames that became packets, so each frame has a new
/// one, and to zero those took a third of the time for IPVS and TC alike. (Later kernels: "xdp:
/// recycle Page Pool backed skbs".)
const ZEROES_NOTHING: &str = "init_on_alloc=0";

/// Boots a kernel, runs `overlay-bench services` with arguments in it, and writes the results to
/// the first of the files and a plot of them to the second.
///
/// # Errors
/// The machine does not boot, or the comparison fails.
pub fn run(asked: &str, arguments: &[String], files: Files<'_>) -> Result<ExitCode> {
    setup::ensure(setup::Scope::CompareBooted)?;
    let cache = super::cache();
    fs::create_dir_all(&cache)?;
    let result = run_in(&cache, asked, arguments, files);
    root::give_back(&cache)?;
    result
}

fn run_in(
    cache: &Path,
    asked: &str,
    arguments: &[String],
    (json, svg): Files<'_>,
) -> Result<ExitCode> {
    let emulator = emulator::find(cache)?;
    let kernel: Kernel = kernel::find(asked, cache)?;
    let products = cargo::build(&["--release", "-p", "overlay-user", "-p", "overlay-tests"])?;
    let room = tempfile::Builder::new().prefix("run-").tempdir_in(cache)?;
    let probe = room.path().join("probe.cpio");
    userland::write_probe(&probe, &emulator.busybox)?;
    let acceleration = qemu::probe(&emulator, &kernel, &probe, cache.join("console-probe.log"))?;
    // The machine's console, from which the results are read.
    let told = ["services", "--against", "ipvs", "--json", "/proc/self/fd/1"];
    let program = cargo::binary(&products, "overlay-bench")?;
    let step = Step {
        name: NAME.to_owned(),
        program: program.clone(),
        place: "overlay-bench".to_owned(),
        arguments: told.iter().map(|word| (*word).to_owned()).chain(arguments.to_vec()).collect(),
    };
    let beside =
        [cargo::binary(&products, "overlay")?, cargo::binary(&products, "overlay-testkit")?];
    let archive = room.path().join("bench.cpio");
    let base = (&*emulator.busybox, &*kernel.modules);
    let tools = [&TO_COMPARE[..], &TO_ASK].concat();
    userland::write(&archive, base, &[step], &beside, (&tools, &IPVS))?;
    let boot = Boot {
        emulator: &emulator,
        kernel: &kernel,
        archive: &archive,
        acceleration,
        console: cache.join(format!("console-{}.log", kernel.name)),
        one_by_one: false,
        parameters: ZEROES_NOTHING,
    };
    let report = qemu::run(&boot, &[NAME.to_owned()], LIMIT)?;
    let found = between_braces(&report.table);
    // A comparison with failed rounds has a result too, which lists them.
    if let Some(found) = &found {
        let results = room.path().join("results.json");
        let path = json.unwrap_or(&results);
        fs::write(path, found).with_context(|| path.display().to_string())?;
        if let Some(picture) = svg {
            draw(&program, path, picture)?;
        }
    }
    if report.totals.failed != 0 {
        bail!("{}", report.totals.failures.join("; "));
    }
    found.context("the comparison printed no result")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the program on this machine to plot the other machine's results.
fn draw(program: &Path, results: &Path, picture: &Path) -> Result<()> {
    let mut bench = machine::command(program);
    let status = bench.arg("draw").args([results, picture]).status();
    let status = status.context("cannot run overlay-bench")?;
    if !status.success() {
        bail!("overlay-bench draw ended with {status}");
    }
    Ok(())
}

/// The lines from one brace to the other.
fn between_braces(lines: &[String]) -> Option<String> {
    let first = lines.iter().position(|line| line == "{")?;
    let last = lines.iter().rposition(|line| line == "}")?;
    Some(lines.get(first..=last)?.iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_told_from_what_is_printed_around_it() {
        let said = ["round 1 of 1", "| case |", "{", "  \"cases\": []", "}", "bye"];
        let said = said.map(str::to_owned);
        assert_eq!(between_braces(&said).as_deref(), Some("{\n  \"cases\": []\n}\n"));
        assert_eq!(between_braces(&said[..2]), None);
    }
}
