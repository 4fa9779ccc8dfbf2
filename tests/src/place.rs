//! The origins of traffic: a host, a container or a machine outside, and the requests that they can
//! make.

use std::{ffi::OsStr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, bail, ensure};
use serde::de::DeserializeOwned;

use crate::{
    binaries, netns,
    process::{self, Output, Process},
    testkit::{Answer, Asked, BulkReport, ChatReport, DONE, Heard, LoadReport, Pinged, Resolved},
    wait::eventually,
};

/// Somewhere programs run.
pub trait Place {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// Tag of the processes started there.
    fn tag(&self) -> &str;

    /// Arguments for `nsenter`.
    fn enter(&self) -> Vec<String>;

    /// The folder for the output of background programs.
    fn logs(&self) -> &Path;

    /// A command that will run there.
    fn command<P: AsRef<OsStr>>(&self, program: P) -> Command {
        netns::command(self.tag(), &self.enter(), program)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// The program cannot be started or does not end. Its own failure is in the output.
    fn exec<A: AsRef<OsStr>>(&self, program: &str, args: &[A]) -> anyhow::Result<Output> {
        let mut command = self.command(program);
        command.args(args);
        process::run(command)
    }

    /// Starts a program in the background.
    ///
    /// # Errors
    /// If it cannot be started.
    fn spawn<A: AsRef<OsStr>>(&self, program: &Path, args: &[A]) -> anyhow::Result<Process> {
        let mut command = self.command(program);
        command.args(args);
        Process::spawn(command, &log_file(self.logs(), self.name()))
    }

    /// Starts a server of the testkit and waits until it listens.
    ///
    /// # Errors
    /// If it ends before it does.
    fn serve(&self, args: &[&str]) -> anyhow::Result<Process> {
        let mut process = self.spawn(&binaries::testkit()?, args)?;
        wait_listening(&mut process)?;
        Ok(process)
    }

    /// Runs a client of the testkit and reads its report; requests that fail are part of it.
    ///
    /// # Errors
    /// If there is no report.
    fn ask<T: DeserializeOwned>(&self, args: &[&str]) -> anyhow::Result<T> {
        let testkit = binaries::testkit()?;
        let output = self.exec(&testkit.to_string_lossy(), args)?;
        report(&output)
    }

    /// One GET from `HOST:PORT`.
    ///
    /// # Errors
    /// If it fails.
    fn http_get(&self, target: &str) -> anyhow::Result<Answer> {
        one(self, target, self.ask(&["http-get", target])?)
    }

    /// Sends `count` GETs, each over its own connection.
    ///
    /// # Errors
    /// If one fails.
    fn http_get_many(&self, target: &str, count: u32) -> anyhow::Result<Vec<Answer>> {
        all(self, target, self.ask(&["http-get", target, "--count", &count.to_string()])?)
    }

    /// One greeting of a `tcp-id`.
    ///
    /// # Errors
    /// If it fails.
    fn tcp_get(&self, target: &str) -> anyhow::Result<Answer> {
        one(self, target, self.ask(&["tcp-get", target])?)
    }

    /// `count` greetings.
    ///
    /// # Errors
    /// If one fails.
    fn tcp_get_many(&self, target: &str, count: u32) -> anyhow::Result<Vec<Answer>> {
        all(self, target, self.ask(&["tcp-get", target, "--count", &count.to_string()])?)
    }

    /// One datagram and its answer.
    ///
    /// # Errors
    /// If it fails.
    fn udp_ask(&self, target: &str) -> anyhow::Result<Answer> {
        one(self, target, self.ask(&["udp-ask", target])?)
    }

    /// Sends `count` datagrams, each from its own socket, and returns their answers.
    ///
    /// # Errors
    /// If one fails.
    fn udp_ask_many(&self, target: &str, count: u32) -> anyhow::Result<Vec<Answer>> {
        all(self, target, self.ask(&["udp-ask", target, "--count", &count.to_string()])?)
    }

    /// Datagrams to `GROUP:PORT` or a broadcast address, which all of `of` must answer. Returns how
    /// often each answered in `rounds` rounds.
    ///
    /// # Errors
    /// If one does not answer.
    fn group_ask(&self, target: &str, of: &[&str], rounds: u32) -> anyhow::Result<Heard> {
        let rounds = rounds.to_string();
        let mut args = vec!["group-ask", target, "--rounds", &rounds];
        args.extend(of.iter().flat_map(|name| ["--of", name]));
        let heard: Heard = self.ask(&args)?;
        ensure!(
            heard.missing.is_empty(),
            "{}: asked {target}, no answer of {:?}; heard {:?}",
            self.name(),
            heard.missing,
            heard.answers
        );
        Ok(heard)
    }

    /// Checks that no TCP connection to `HOST:PORT` succeeds.
    ///
    /// # Errors
    /// If one does.
    fn cannot_connect(&self, target: &str) -> anyhow::Result<()> {
        none(self, target, self.ask(&["tcp-get", target, "--timeout-ms", "800"])?)
    }

    /// Checks that a datagram to `HOST:PORT` gets no answer.
    ///
    /// # Errors
    /// If something does.
    fn cannot_ask(&self, target: &str) -> anyhow::Result<()> {
        none(self, target, self.ask(&["udp-ask", target, "--timeout-ms", "800"])?)
    }

    /// ICMP echo; all of `count` must be answered.
    ///
    /// # Errors
    /// If one is not.
    fn ping(&self, target: &str, count: u16) -> anyhow::Result<()> {
        let pinged: Pinged = self.ask(&["ping", target, "--count", &count.to_string()])?;
        ensure!(
            pinged.answered == count,
            "{}: {target} answered {} of {count} pings",
            self.name(),
            pinged.answered
        );
        Ok(())
    }

    /// Checks that an ICMP echo request to an address gets no answer.
    ///
    /// # Errors
    /// If something does.
    fn cannot_ping(&self, target: &str) -> anyhow::Result<()> {
        let pinged: anyhow::Result<Pinged> = self.ask(&["ping", target, "--timeout-ms", "800"]);
        match pinged {
            Ok(pinged) if pinged.answered > 0 => {
                bail!("{}: {target} answered a ping", self.name())
            }
            _ => Ok(()),
        }
    }

    /// The A records of a name, by the server inside the container.
    ///
    /// # Errors
    /// If nothing answers.
    fn resolve(&self, name: &str) -> anyhow::Result<Resolved> {
        self.ask(&["resolve", name])
    }

    /// Sends `bytes` to a `bulk-recv`.
    ///
    /// # Errors
    /// If the transfer breaks or arrives altered.
    fn bulk_send(&self, target: &str, bytes: u64) -> anyhow::Result<BulkReport> {
        let sent: BulkReport = self.ask(&["bulk-send", target, "--bytes", &bytes.to_string()])?;
        ensure!(
            sent.sent_sha256 == sent.received_sha256 && sent.bytes == bytes,
            "{}: the transfer to {target} arrived altered: {sent:?}",
            self.name()
        );
        Ok(sent)
    }

    /// Starts asking all `targets` all the time.
    ///
    /// # Errors
    /// If it cannot be started.
    fn load(&self, targets: &[String]) -> anyhow::Result<Running> {
        let mut args = vec!["http-load"];
        args.extend(targets.iter().map(String::as_str));
        self.serve(&args).map(Running)
    }

    /// Starts a conversation over one connection to a `tcp-id`.
    ///
    /// # Errors
    /// If it cannot be started.
    fn chat(&self, target: &str) -> anyhow::Result<Running> {
        self.serve(&["tcp-chat", target]).map(Running)
    }

    /// Like [`Self::chat`], with a pause after each line.
    ///
    /// # Errors
    /// If it cannot be started.
    fn slow_chat(&self, target: &str, pause: Duration) -> anyhow::Result<Running> {
        let pause = pause.as_millis().to_string();
        self.serve(&["tcp-chat", target, "--pause-ms", &pause]).map(Running)
    }
}

/// A client in the background.
#[derive(Debug)]
pub struct Running(Process);

impl Running {
    /// Waits until it has sent so many more requests or lines than by now.
    ///
    /// # Errors
    /// If it does not get on.
    pub fn goes_on(&self, more: u64) -> anyhow::Result<()> {
        let done = || -> u64 {
            let output = self.0.output();
            let mut counts = output.lines().rev().filter_map(|line| line.strip_prefix(DONE));
            counts.find_map(|count| count.parse().ok()).unwrap_or_default()
        };
        let begin = done();
        eventually("the client goes on", Duration::from_secs(60), || {
            let now = done();
            ensure!(now >= begin + more, "{} of {more} since then", now - begin);
            Ok(())
        })
    }

    /// Ends a load and reads its report.
    ///
    /// # Errors
    /// There is no report.
    pub fn load_report(mut self) -> anyhow::Result<LoadReport> {
        report(&self.0.stop()?)
    }

    /// Waits for a chat to end by itself and reads its report.
    ///
    /// # Errors
    /// If it does not end, or there is no report.
    pub fn chat_ended(mut self) -> anyhow::Result<ChatReport> {
        report(&self.0.wait(Duration::from_secs(30))?)
    }

    /// Ends a chat and reads its report.
    ///
    /// # Errors
    /// There is no report.
    pub fn chat_report(mut self) -> anyhow::Result<ChatReport> {
        report(&self.0.stop()?)
    }
}

/// The last line printed is the report.
fn report<T: DeserializeOwned>(output: &Output) -> anyhow::Result<T> {
    let line = output.stdout.lines().rev().find(|line| line.starts_with('{'));
    line.and_then(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("no report: {}", output.describe()))
}

fn failed<P: Place + ?Sized>(place: &P, target: &str, asked: &Asked) -> anyhow::Result<()> {
    let Some(first) = asked.failures.first() else { return Ok(()) };
    bail!(
        "from {}, {} of {} requests to {target} failed, the first with {first}",
        place.name(),
        asked.failures.len(),
        asked.failures.len() + asked.answers.len()
    )
}

fn all<P: Place + ?Sized>(place: &P, target: &str, asked: Asked) -> anyhow::Result<Vec<Answer>> {
    failed(place, target, &asked)?;
    Ok(asked.answers)
}

fn one<P: Place + ?Sized>(place: &P, target: &str, asked: Asked) -> anyhow::Result<Answer> {
    let answers = all(place, target, asked)?;
    answers.into_iter().next().context("no answer")
}

fn none<P: Place + ?Sized>(place: &P, target: &str, asked: Asked) -> anyhow::Result<()> {
    match asked.answers.first() {
        None => Ok(()),
        Some(answer) => bail!("from {}, {target} was answered by {answer:?}", place.name()),
    }
}

/// Waits until a testkit program prints that it listens.
pub fn wait_listening(process: &mut Process) -> anyhow::Result<()> {
    let printed = eventually("the program listens", Duration::from_secs(20), || {
        // One that has ended will not: stop waiting.
        let ended = process.check_running().err();
        let output = process.output();
        if output.lines().any(|line| line.starts_with("listening: ")) {
            return Ok(None);
        }
        match ended {
            Some(error) => Ok(Some(error)),
            None => bail!("it printed: {}", output.trim_end()),
        }
    })?;
    printed.map_or(Ok(()), Err)
}

/// A new file for the output of `name`.
pub fn log_file(logs: &Path, name: &str) -> std::path::PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    logs.join(format!("{name}.{}.log", NEXT.fetch_add(1, Ordering::Relaxed)))
}
