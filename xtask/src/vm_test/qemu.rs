//! A machine in QEMU: boots it, and follows its output.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{emulator::Emulator, kernel::Kernel};
use crate::{machine, totals::Totals};

/// A machine that boots at all does so in this time under KVM.
const PROBE: Duration = Duration::from_secs(15);

/// The factor by which emulation is slower.
const EMULATED_PATIENCE: u32 = 6;

/// Without a word from the first process by then, a machine is hung. Emulated on two busy cores,
/// the first word came within half a minute.
const BOOT: Duration = Duration::from_secs(240);

/// How often a machine is started if it prints nothing.
const BOOTS: u32 = 2;

/// How the processor is provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// The host's own, by /dev/kvm.
    Kvm,
    /// QEMU translates the instructions.
    Emulation,
}

/// A machine to boot.
pub struct Boot<'a> {
    /// The emulator that boots it.
    pub emulator: &'a Emulator,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initial file system.
    pub archive: &'a Path,
    /// Who executes it.
    pub acceleration: Acceleration,
    /// The file for the kernel's messages.
    pub console: PathBuf,
    /// Whether tests run one after the other. On a slow machine they must: daemons that start at
    /// the same time on two emulated CPUs, each with the verifier at work, would not be ready in
    /// time.
    pub one_by_one: bool,
    /// Further parameters of the kernel.
    pub parameters: &'a str,
}

/// KVM when a machine boots with it: /dev/kvm may be there and not work, as in some clouds.
///
/// # Errors
/// QEMU cannot be run.
pub fn probe(
    emulator: &Emulator,
    kernel: &Kernel,
    archive: &Path,
    console: PathBuf,
) -> Result<Acceleration> {
    let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        println!("vm-test: no usable /dev/kvm here: emulating");
        return Ok(Acceleration::Emulation);
    }
    let acceleration = Acceleration::Kvm;
    let (one_by_one, parameters) = (false, "overlay.probe");
    let boot = Boot { emulator, kernel, archive, acceleration, console, one_by_one, parameters };
    // When KVM fails, QEMU prints a page of registers.
    let mut machine = Machine::start(&boot, "", Stdio::null())?;
    let deadline = Instant::now() + PROBE;
    while let Some(line) = machine.line(deadline) {
        if line.starts_with("vm-test: booted") {
            println!("vm-test: KVM works");
            return Ok(Acceleration::Kvm);
        }
    }
    println!("vm-test: nothing boots with KVM here within {} s: emulating", PROBE.as_secs());
    Ok(Acceleration::Emulation)
}

/// Boots and follows the machine to its end or to the time limit.
///
/// # Errors
/// QEMU cannot be run.
pub fn run(boot: &Boot<'_>, steps: &[String], limit: Duration) -> Result<Report> {
    // The kernel passes unknown parameters to the first process as its environment.
    let environment = match boot.acceleration {
        Acceleration::Kvm => String::new(),
        Acceleration::Emulation if boot.one_by_one => {
            format!("OVERLAY_BOX_PATIENCE={EMULATED_PATIENCE} RUST_TEST_THREADS=1")
        }
        Acceleration::Emulation => format!("OVERLAY_BOX_PATIENCE={EMULATED_PATIENCE}"),
    };
    let start = Instant::now();
    let mut report = Report::new(&boot.kernel.name, steps);
    for attempt in 1..=BOOTS {
        let mut machine = Machine::start(boot, &environment, Stdio::inherit())?;
        follow(&mut machine, &mut report, start + limit);
        if report.over {
            break;
        }
        drop(machine);
        tell_console(&boot.console);
        // A machine that has booted is not started again: a test that fails or hangs must show.
        if report.booted || attempt == BOOTS || start.elapsed() >= limit {
            break;
        }
        println!("vm-test: {} did not boot: once more", boot.kernel.name);
        report = Report::new(&boot.kernel.name, steps);
    }
    report.finish(limit);
    Ok(report)
}

/// Reads the machine's output to its end, to the boot timeout or to `deadline`.
fn follow(machine: &mut Machine, report: &mut Report, deadline: Instant) {
    let boot = Instant::now() + BOOT;
    while let Some(line) = machine.line(if report.booted { deadline } else { boot.min(deadline) }) {
        println!("{line}");
        report.read_line(&line);
    }
}

fn tell_console(console: &Path) {
    let text = fs::read(console).unwrap_or_default();
    println!("vm-test: the end of the kernel's log, {}:", console.display());
    println!("{}", tail(&String::from_utf8_lossy(&text), 30));
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// QEMU, killed when dropped.
struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Machine {
    fn start(boot: &Boot<'_>, environment: &str, stderr: Stdio) -> Result<Self> {
        // The machine ends with this process, however that ends.
        let mut command = machine::command(Path::new("setpriv"));
        command.args(["--pdeathsig", "KILL"]).arg(&boot.emulator.qemu);
        command.env("LD_LIBRARY_PATH", boot.emulator.ld_library_path());
        match boot.acceleration {
            Acceleration::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
            Acceleration::Emulation => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
        };
        command.args(["-m", "3G", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-serial").arg(format!("file:{}", boot.console.display()));
        command.args(["-serial", "stdio"]);
        command.arg("-kernel").arg(&boot.kernel.image).arg("-initrd").arg(boot.archive);
        let parameters = format!("{} {environment}", boot.parameters);
        command.arg("-append").arg(format!("console=ttyS0 loglevel=6 panic=-1 {parameters}"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .context("cannot run setpriv (util-linux) with qemu-system-x86_64")?;
        let stdout = child.stdout.take().context("the child has a pipe")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line; none when the machine is off or the time is up.
    fn line(&mut self, deadline: Instant) -> Option<String> {
        self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a machine.
#[derive(Debug)]
pub struct Report {
    /// The results of its programs.
    pub totals: Totals,
    /// The lines of each program that printed a table.
    pub table: Vec<String>,
    kernel: String,
    waiting: Vec<String>,
    current: Option<(String, Totals)>,
    booted: bool,
    over: bool,
}

impl Report {
    fn new(kernel: &str, steps: &[String]) -> Self {
        Self {
            totals: Totals::default(),
            table: Vec::new(),
            kernel: kernel.to_owned(),
            waiting: steps.to_vec(),
            current: None,
            booted: false,
            over: false,
        }
    }

    fn label(&self, name: &str) -> String {
        format!("{} {name}", self.kernel)
    }

    fn read_line(&mut self, line: &str) {
        match line.strip_prefix("vm-test: ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
        {
            Some(("run", name)) => {
                self.waiting.retain(|step| step != name);
                self.current = Some((name.to_owned(), Totals::default()));
            }
            Some(("end", rest)) => {
                let code = rest.rsplit(' ').next().and_then(|code| code.parse().ok());
                self.end(code.unwrap_or(1));
            }
            Some(("booted", _)) => self.booted = true,
            Some(("over", _)) => self.over = true,
            Some(("broken", what)) => self.totals.add(Totals::broken(self.label(what))),
            _ => self.follow(line),
        }
    }

    fn follow(&mut self, line: &str) {
        let kernel = &self.kernel;
        if let Some((name, totals)) = &mut self.current {
            totals.read_line(&format!("{kernel} {name}: "), line);
            if name == super::VERIFIER || name == super::bench::NAME {
                self.table.push(line.to_owned());
            }
        }
    }

    fn end(&mut self, code: i32) {
        if let Some((name, mut totals)) = self.current.take() {
            totals.read_status(&self.label(&name), ExitStatus::from_raw(code << 8));
            self.totals.add(totals);
        }
    }

    /// A test that did not finish is a failure.
    fn finish(&mut self, limit: Duration) {
        if self.over {
            return;
        }
        let minutes = limit.as_secs() / 60;
        let mut what = match self.current.take() {
            Some((name, totals)) => {
                self.totals.add(totals);
                format!("the machine hung or died in {name} within its {minutes} minutes")
            }
            None if !self.booted => "the machine never reached its first process".to_owned(),
            None => {
                format!("the machine hung or died between programs within its {minutes} minutes")
            }
        };
        if !self.waiting.is_empty() {
            what.push_str(&format!("; not run: {}", self.waiting.join(", ")));
        }
        self.totals.add(Totals::broken(self.label(&what)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::new("6.1", &["one".to_owned(), "two".to_owned()]);
        lines.iter().for_each(|line| report.read_line(line));
        report.finish(LIMIT);
        report
    }

    #[test]
    fn programs_results_add_up() {
        let result = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let run = ["vm-test: run one", result, "vm-test: end one 0"];
        let other = ["vm-test: run two", result, "vm-test: end two 0", "vm-test: over"];
        assert_eq!(report(&[run, other[..3].try_into().unwrap()].concat()).totals.failed, 1);
        let mut all = run.to_vec();
        all.extend(other);
        assert_eq!(report(&all).totals.to_string(), "6 passed, 0 failed");
    }

    #[test]
    fn a_failing_test_is_named_with_its_kernel_and_a_status_counts() {
        let lines = [
            "vm-test: run one",
            "test encap ... FAILED",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "vm-test: end one 101",
            "vm-test: run two",
            "vm-test: end two 134",
            "vm-test: over",
        ];
        let totals = report(&lines).totals;
        assert_eq!(totals.failed, 2);
        assert_eq!(totals.failures[0], "6.1 one: encap");
        assert!(totals.failures[1].starts_with("6.1 two ended with"), "{totals:?}");
    }

    #[test]
    fn a_machine_that_stops_tells_where_and_what_was_left() {
        let totals = report(&["vm-test: run one", "running 3 tests"]).totals;
        assert_eq!(totals.failed, 1);
        assert_eq!(
            totals.failures[0],
            "6.1 the machine hung or died in one within its 10 minutes; not run: two"
        );
    }

    #[test]
    fn a_machine_that_never_booted_is_told_from_one_that_died_later() {
        let never = report(&[]).totals;
        assert_eq!(
            never.failures,
            ["6.1 the machine never reached its first process; not run: one, two"]
        );
        let later = report(&["vm-test: booted 6.1.0", "vm-test: run one", "vm-test: end one 0"]);
        assert!(later.totals.failures[0].contains("between programs"), "{later:?}");
    }

    #[test]
    fn a_module_that_does_not_load_is_a_failure() {
        let totals = report(&["vm-test: broken module vxlan.ko", "vm-test: over"]).totals;
        assert_eq!(totals.failures, ["6.1 module vxlan.ko"]);
    }
}
