//! `group-ask`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Answer, Report};
use crate::wait::patience;

/// Parameters of `group-ask`.
#[derive(Clone, Debug, Args)]
pub struct GroupArgs {
    /// GROUP:PORT, or a broadcast address.
    target: SocketAddr,
    /// Names of those that must answer. Every round ends when all of them have.
    #[arg(long, required = true)]
    of: Vec<String>,
    /// How often they are asked.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Milliseconds that a round may take.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// Who answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// How many answers each gave. A second answer in one round shows when the next round is over.
    pub answers: BTreeMap<String, u32>,
    /// Who did not answer in which round.
    pub missing: Vec<String>,
}

impl Report for Heard {
    fn good(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Asks all `udp-echo`s of a group.
pub fn ask(args: &GroupArgs) -> anyhow::Result<Heard> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a socket")?;
    socket.set_broadcast(true)?;
    let mut heard = Heard::default();
    for round in 0..args.rounds {
        let question = format!("round {round}");
        socket
            .send_to(question.as_bytes(), args.target)
            .with_context(|| format!("sending to {}", args.target))?;
        let missing = listen(args, &socket, &question, &mut heard)?;
        if !missing.is_empty() {
            heard.missing.extend(missing.iter().map(|name| format!("{name} in {question}")));
            break;
        }
    }
    Ok(heard)
}

/// Receives answers until all members have answered the question. Returns those that did not answer
/// in time.
fn listen(
    args: &GroupArgs,
    socket: &UdpSocket,
    question: &str,
    heard: &mut Heard,
) -> anyhow::Result<BTreeSet<String>> {
    let mut waiting: BTreeSet<String> = args.of.iter().cloned().collect();
    let give_up = Instant::now() + Duration::from_millis(args.timeout_ms) * patience();
    let mut buffer = vec![0; 65536];
    while !waiting.is_empty() {
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        // The time is up, or a member's port was unreachable.
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let answer: Answer = serde_json::from_slice(&buffer[..length]).context("an answer")?;
        if answer.said == question {
            waiting.remove(&answer.name);
        }
        *heard.answers.entry(answer.name).or_default() += 1;
    }
    Ok(waiting)
}
