//! `http-load`: sends requests all the time, on new and on kept connections, and counts failures.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Failure, FailureKind, Report, http::Connection, serve};

/// Shorter than the time after which Linux sends a SYN again: one second (RFC 6298, section 2).
const SLOW: Duration = Duration::from_millis(900);

/// Parameters of `http-load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// HOST:PORT, asked in turn.
    #[arg(required = true)]
    targets: Vec<String>,
    /// Workers; every second one keeps its connections for several requests.
    #[arg(long, default_value_t = 6)]
    workers: usize,
    /// Requests over one kept connection.
    #[arg(long, default_value_t = 20)]
    requests: u32,
    /// Milliseconds between a worker's requests.
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,
    /// Milliseconds without an answer that make a failure.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Ends after so many seconds, if not by SIGTERM.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Ends when this file exists.
    #[arg(long)]
    until_file: Option<PathBuf>,
}

/// The requests and the failures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests begun: counted before anything is sent.
    pub begun: u64,
    /// Requests that ended, the failed ones included.
    pub requests: u64,
    /// Connections tried.
    pub connections: u64,
    /// Connections that were made only after Linux sent a second SYN: the first was lost, or not
    /// accepted.
    pub slow: u64,
    /// Failures by kind.
    pub failed: BTreeMap<FailureKind, u64>,
    /// The first failures: milliseconds after the start, and what failed.
    pub examples: Vec<(u64, Failure)>,
    /// Answers by the name of the server.
    pub answered_by: BTreeMap<String, u64>,
}

impl LoadReport {
    /// Number of failures.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Checks that every request was answered, and returns their number.
    ///
    /// # Errors
    /// The failures, or the number of missing answers.
    pub fn all_answered(&self) -> anyhow::Result<u64> {
        let answered: u64 = self.answered_by.values().sum();
        let all = self.failures() == 0 && answered == self.begun && self.begun > 0;
        anyhow::ensure!(all, "{answered} of {} requests were answered: {self:?}", self.begun);
        Ok(answered)
    }
}

impl Report for LoadReport {
    fn good(&self) -> bool {
        self.failures() == 0
    }
}

struct Load<'a> {
    args: &'a LoadArgs,
    start: Instant,
    report: Mutex<LoadReport>,
}

/// Asks until told to end.
pub fn run(args: &LoadArgs) -> anyhow::Result<LoadReport> {
    serve::stop_on_signals()?;
    let load = Load { args, start: Instant::now(), report: Mutex::default() };
    println!("listening: to {}", args.targets.join(" "));
    std::thread::scope(|scope| {
        for worker in 0..args.workers {
            let load = &load;
            scope.spawn(move || load.work(worker));
        }
    });
    Ok(load.report.into_inner().unwrap_or_default())
}

impl Load<'_> {
    fn ends(&self) -> bool {
        serve::stopping()
            || self.start.elapsed() >= Duration::from_secs(self.args.seconds)
            || self.args.until_file.as_ref().is_some_and(|file| file.exists())
    }

    fn work(&self, worker: usize) {
        let requests = if worker.is_multiple_of(2) { 1 } else { self.args.requests.max(1) };
        for target in self.args.targets.iter().cycle().skip(worker) {
            if self.ends() {
                return;
            }
            self.connection(target, requests);
        }
    }

    fn connection(&self, target: &str, requests: u32) {
        self.count(|report| {
            report.connections += 1;
            report.begun += 1;
        });
        let began = Instant::now();
        let opened = Connection::open(target, Duration::from_millis(self.args.timeout_ms));
        if opened.is_ok() && began.elapsed() >= SLOW {
            self.count(|report| report.slow += 1);
        }
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(failure) => {
                self.fail(failure);
                return self.pause();
            }
        };
        for left in (0..requests).rev() {
            if left + 1 < requests {
                // The first one began with the connection.
                self.count(|report| report.begun += 1);
            }
            let asked = connection.request(left == 0 || self.ends());
            self.pause();
            match asked {
                Ok((answer, open)) => {
                    self.count(|report| {
                        report.requests += 1;
                        *report.answered_by.entry(answer.name).or_default() += 1;
                    });
                    if !open {
                        return;
                    }
                }
                Err(failure) => return self.fail(failure),
            }
        }
    }

    fn pause(&self) {
        std::thread::sleep(Duration::from_millis(self.args.pause_ms));
    }

    fn fail(&self, failure: Failure) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.count(|report| {
            report.requests += 1;
            *report.failed.entry(failure.kind).or_default() += 1;
            if report.examples.len() < 10 {
                report.examples.push((at, failure));
            }
        });
    }

    fn count(&self, count: impl FnOnce(&mut LoadReport)) {
        let mut report = self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = report.requests;
        count(&mut report);
        if report.requests > before && report.requests.is_multiple_of(10) {
            println!("{}{}", super::DONE, report.requests);
        }
    }
}
