//! `tcp-chat`: one connection, a line at a time, until it is stopped.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Answer, Failure, FailureKind, Report, answer, serve, tcp};

/// Parameters of `tcp-chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// HOST:PORT of a `tcp-id`.
    target: String,
    /// Milliseconds between lines.
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
    /// Milliseconds without an echo that make a failure.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// How a chat went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChatReport {
    /// Who was at the other end.
    pub peer: Option<Answer>,
    /// The peer that the system reports after the last line.
    pub named: Option<SocketAddr>,
    /// Lines echoed.
    pub lines: u64,
    /// The failure that ended the chat before SIGTERM.
    pub failure: Option<Failure>,
}

impl Report for ChatReport {
    fn good(&self) -> bool {
        self.failure.is_none()
    }
}

/// Talks until SIGTERM or the first failure.
pub fn run(args: &ChatArgs) -> anyhow::Result<ChatReport> {
    serve::stop_on_signals()?;
    let mut report = ChatReport { peer: None, named: None, lines: 0, failure: None };
    report.failure = chat(args, &mut report).err();
    Ok(report)
}

fn chat(args: &ChatArgs, report: &mut ChatReport) -> Result<(), Failure> {
    let failed = |e| Failure::talking(&args.target, &e);
    let mut stream = answer::connect(&args.target, Duration::from_millis(args.timeout_ms))?;
    let mut reader = BufReader::new(stream.try_clone().map_err(failed)?);
    report.peer = Some(tcp::greeting(&mut reader, &args.target)?);
    println!("listening: to {}", args.target);
    let mut echoed = String::new();
    while !serve::stopping() {
        let line = format!("line {}\n", report.lines);
        stream.write_all(line.as_bytes()).map_err(failed)?;
        echoed.clear();
        let count = reader.read_line(&mut echoed).map_err(failed)?;
        if count == 0 {
            return Err(Failure::new(FailureKind::ShortRead, "the peer ended the chat"));
        }
        if echoed != line {
            return Err(Failure::new(FailureKind::BadAnswer, format!("{echoed:?} for {line:?}")));
        }
        report.lines += 1;
        println!("{}{}", super::DONE, report.lines);
        report.named = Some(stream.peer_addr().map_err(failed)?);
        std::thread::sleep(Duration::from_millis(args.pause_ms));
    }
    Ok(())
}
