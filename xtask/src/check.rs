//! `cargo xtask check`

mod comments;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{cargo, docs, object, root, setup, totals::Totals};

/// Check format, comments, documents, lints, rustdoc and unit tests, without root.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  cargo xtask check
  cargo xtask check --no-tests

Takes less than a minute where everything is built and little has changed. All steps run even when one
fails. The last line is `N passed, N failed`: the unit tests, and one failure for each other step that
failed; the exit status says the same. Needs no root, unless setup has to install something first.
`cargo xtask test` runs what needs root: programs in the kernel and clusters.")]
pub struct Check {
    /// Leave the unit tests out, which `cargo xtask test` runs too.
    #[arg(long)]
    no_tests: bool,
    /// Only list comments that are too long, those of files that are not held to it yet included.
    #[arg(long)]
    comments: bool,
}

/// How a step ended.
enum Outcome {
    /// A step that passes or fails as a whole: a failure counts as one, success counts as no test.
    Check(bool),
    /// One that counts tests.
    Tests(Totals),
}

impl Check {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode> {
        if self.comments {
            return list_comments();
        }
        setup::ensure(setup::Scope::Build)?;
        hint_at_missing_tools();
        let mut totals = Totals::default();
        let cargo = |args: &[&str], environment: &[(&str, &str)]| {
            let mut cargo = cargo::command();
            cargo.args(args).envs(environment.iter().copied());
            succeeds(cargo)
        };
        step("format: cargo fmt", &mut totals, || cargo(&["fmt", "--all", "--check"], &[]))?;
        step("comments: no line beyond column 100", &mut totals, || {
            Ok(print(&comments::report()?.faults))
        })?;
        object::ahead();
        step("lints: cargo clippy", &mut totals, || {
            cargo(
                &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
                &[],
            )
        })?;
        step("rustdoc: cargo doc, private items too", &mut totals, || {
            cargo(
                &[
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--locked",
                    "--document-private-items",
                    "--keep-going",
                ],
                &[("RUSTDOCFLAGS", "-D warnings")],
            )
        })?;
        step("documents: generated pages and links", &mut totals, || Ok(print(&docs::faults()?)))?;
        if !self.no_tests {
            step("unit tests: cargo test, libraries and programs", &mut totals, || {
                unit_tests().map(Outcome::Tests)
            })?;
        }
        println!();
        for failure in &totals.failures {
            println!("failed: {failure}");
        }
        println!("{totals}");
        Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn list_comments() -> Result<ExitCode> {
    let report = comments::report()?;
    let all = [report.faults, report.exempt].concat();
    print(&all);
    Ok(if all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `cargo fmt` and `cargo clippy` are parts of their own, of rustup and of Debian.
fn hint_at_missing_tools() {
    for tool in ["fmt", "clippy"] {
        let mut cargo = cargo::command();
        cargo.args([tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        if !cargo.status().is_ok_and(|status| status.success()) {
            println!(
                "cargo {tool} is missing. rustup: rustup component add rustfmt clippy. \
                 Debian: apt-get install rustfmt-web rust-web-clippy"
            );
        }
    }
}

/// Prints the name of the step, runs it, and prints its duration.
fn step(name: &str, totals: &mut Totals, run: impl FnOnce() -> Result<Outcome>) -> Result<()> {
    println!("\n== {name} ==");
    let begun = Instant::now();
    let of_step = match run()? {
        Outcome::Tests(totals) => totals,
        Outcome::Check(true) => Totals::default(),
        Outcome::Check(false) => Totals::broken(name.to_owned()),
    };
    let passed = of_step.failed == 0;
    println!(
        "{} after {:.1} s",
        if passed { "passed" } else { "failed" },
        begun.elapsed().as_secs_f32()
    );
    totals.add(of_step);
    Ok(())
}

/// Prints faults; there must be none.
fn print(faults: &[String]) -> Outcome {
    for fault in faults {
        println!("{fault}");
    }
    Outcome::Check(faults.is_empty())
}

fn succeeds(mut command: Command) -> Result<Outcome> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    Ok(Outcome::Check(status.success()))
}

/// Runs the unit tests and the examples of the documentation. If all tests of a program pass, only
/// their number is shown.
fn unit_tests() -> Result<Totals> {
    let test = |what: &[&str]| {
        let mut cargo = cargo::command();
        cargo.args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(what);
        cargo
    };
    let mut programs = test(&["--lib", "--bins"]);
    programs.args(without_root());
    let mut totals = count("unit tests: ", programs)?;
    totals.add(count("examples: ", test(&["--doc"]))?);
    Ok(totals)
}

/// Cargo's arguments that run the test programs without root, if this process is root. Tests that
/// make interfaces and load programs then skip themselves, as they do without root. In a user
/// namespace the same user has another number, so the programs may read and write the same files as
/// before. Without user namespaces they run as root.
fn without_root() -> Vec<String> {
    const RUNNER: [&str; 4] = ["unshare", "--user", "--map-user=65534", "--map-group=65534"];
    let [program, arguments @ ..] = RUNNER;
    let mut probe = Command::new(program);
    probe.args(arguments).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    if !root::is_root() || !probe.status().is_ok_and(|status| status.success()) {
        return Vec::new();
    }
    vec!["--config".to_owned(), format!("target.'cfg(unix)'.runner={RUNNER:?}")]
}

fn count(name: &str, mut command: Command) -> Result<Totals> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = child.stdout.take().context("the child has a pipe")?;
    let mut totals = Totals::default();
    let mut unshown = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| format!("cannot read what {command:?} says"))?;
        totals.read_line(name, &line);
        let passed = line.starts_with("test result: ok.");
        unshown.push(line);
        if passed {
            unshown.clear();
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {command:?}"))?;
    for line in shown(&unshown, status.success()) {
        println!("{line}");
    }
    totals.read_status(name, status);
    Ok(totals)
}

/// The output of programs that did not pass, without the tests that passed.
fn shown(lines: &[String], success: bool) -> impl Iterator<Item = &String> {
    lines.iter().filter(move |line| !success && !line.ends_with(" ... ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_one_failure_and_a_passed_one_is_no_test() {
        let mut totals = Totals::default();
        step("one", &mut totals, || Ok(Outcome::Check(true))).unwrap();
        step("two", &mut totals, || Ok(Outcome::Check(false))).unwrap();
        assert_eq!(totals.to_string(), "0 passed, 1 failed");
        assert_eq!(totals.failures, ["two"]);
    }

    #[test]
    fn passing_tests_are_counted_and_not_shown() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo 'test a ... ok'; echo 'test b ... FAILED'; echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured'; exit 101"]);
        let totals = count("shell: ", shell).unwrap();
        assert_eq!(totals.to_string(), "1 passed, 1 failed");
        assert_eq!(totals.failures, ["shell: b"]);
        let lines = ["test a ... ok", "test b ... FAILED", "words"].map(str::to_owned);
        assert_eq!(shown(&lines, false).count(), 2);
        assert_eq!(shown(&lines, true).count(), 0);
    }
}
