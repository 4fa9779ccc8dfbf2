//! `overlay-testkit`: small real servers and clients for containers. Clients print one JSON
//! object and fail when anything failed.

mod answer;
mod bulk;
mod chat;
mod dns;
mod group;
mod http;
mod load;
mod ping;
mod sctp;
mod segment;
mod serve;
mod tag;
mod tcp;
mod udp;
mod verifier;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

pub use answer::{Answer, Asked, Failure, FailureKind};
use anyhow::Context as _;
pub use bulk::BulkReport;
pub use chat::ChatReport;
use clap::{Args, Parser, Subcommand};
pub use dns::Resolved;
pub use group::Heard;
pub use load::LoadReport;
pub use ping::Pinged;
pub use sctp::{Associated, SctpPacket};
pub use segment::Segmented;
use serde::Serialize;
pub use tag::Tagged;

use crate::wait::patience;

/// The beginning of a line with which a program reports its progress.
pub const DONE: &str = "done: ";

/// Small real servers and clients for the suites.
#[derive(Debug, Parser)]
#[command(name = "overlay-testkit", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Who a server says it is.
#[derive(Clone, Debug, Args)]
pub struct Identity {
    /// Name in the answers.
    #[arg(long)]
    name: String,
    /// Host in the answers; the host name if not given.
    #[arg(long)]
    host: Option<String>,
    #[command(flatten)]
    listen: Listen,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, Args)]
pub struct Listen {
    /// Port to listen on.
    #[arg(long)]
    port: u16,
    /// Address to listen on; `::` for both families.
    #[arg(long, default_value = "0.0.0.0")]
    address: IpAddr,
}

impl From<Listen> for SocketAddr {
    fn from(listen: Listen) -> Self {
        Self::new(listen.address, listen.port)
    }
}

/// Whom a client asks.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// HOST:PORT; a name is looked up as any program does.
    target: String,
    /// How often, each time from a new socket.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Milliseconds without an answer that make a failure; more of them where everything is slower.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
}

impl Target {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms) * patience()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Does nothing until SIGTERM.
    Pause,
    /// Greets every TCP connection with who it is, then echoes lines.
    TcpId(Identity),
    /// Reads the greeting of a `tcp-id`.
    TcpGet(Target),
    /// Talks to a `tcp-id` over one connection until SIGTERM.
    TcpChat(chat::ChatArgs),
    /// Answers every GET with who it is and whom it saw.
    Http(http::HttpArgs),
    /// Asks an `http`.
    HttpGet(Target),
    /// Asks `http`s all the time and counts what fails.
    HttpLoad(load::LoadArgs),
    /// Answers every datagram with who it is, whom it saw and what was said.
    UdpEcho(udp::EchoArgs),
    /// Asks a `udp-echo`.
    UdpAsk(udp::UdpArgs),
    /// Says many things to a `udp-echo` in one call.
    UdpSegment(segment::SegmentArgs),
    /// Asks all `udp-echo`s of a group or of a subnet, and counts who answers.
    GroupAsk(group::GroupArgs),
    /// Receives transfers and answers with their SHA-256.
    BulkRecv(Listen),
    /// Sends a transfer and compares the SHA-256.
    BulkSend {
        /// HOST:PORT of the `bulk-recv`.
        target: String,
        /// How much.
        #[arg(long, default_value_t = 1 << 30)]
        bytes: u64,
    },
    /// Asks a DNS server.
    Resolve(dns::ResolveArgs),
    /// A DNS server that knows the names it is given and no others.
    DnsServe {
        /// Address and port to listen on, UDP and TCP.
        #[arg(long)]
        listen: SocketAddr,
        /// NAME=ADDRESS.
        #[arg(long = "record")]
        records: Vec<String>,
    },
    /// Sends a frame with a VLAN tag.
    TagSend(tag::SendArgs),
    /// Waits for a frame of `tag-send`.
    TagRecv(tag::ReceiveArgs),
    /// Sends an SCTP packet made by hand.
    SctpSend(sctp::SendArgs),
    /// Waits for a packet of `sctp-send`.
    SctpRecv(sctp::ReceiveArgs),
    /// Says back what it hears over SCTP associations.
    SctpEcho(Listen),
    /// Talks to an `sctp-echo`.
    SctpAsk {
        /// HOST:PORT of the `sctp-echo`.
        target: String,
    },
    /// ICMP echo.
    Ping(ping::PingArgs),
    /// Loads every program of the datapath and prints what the kernel's verifier says of it.
    Verifier,
    /// Removes what is left of an instance once its maker is gone: standard input is a pipe that
    /// ends with the maker.
    Guard {
        /// Prefix of the instance.
        #[arg(long)]
        prefix: String,
        /// Directory of the instance.
        #[arg(long)]
        dir: PathBuf,
    },
}

/// The program.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("overlay-testkit: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Pause => serve::pause(),
        Command::TcpId(identity) => tcp::serve(&identity),
        Command::TcpGet(target) => print(&tcp::get(&target)?),
        Command::TcpChat(args) => print(&chat::run(&args)?),
        Command::Http(args) => http::serve(&args),
        Command::HttpGet(target) => print(&http::get(&target)?),
        Command::HttpLoad(args) => print(&load::run(&args)?),
        Command::UdpEcho(args) => udp::serve(&args),
        Command::UdpAsk(args) => print(&udp::ask(&args)?),
        Command::UdpSegment(args) => print(&segment::send(&args)?),
        Command::GroupAsk(args) => print(&group::ask(&args)?),
        Command::BulkRecv(listen) => bulk::receive(listen),
        Command::BulkSend { target, bytes } => print(&bulk::send(&target, bytes)?),
        Command::Resolve(args) => print(&dns::resolve(&args)?),
        Command::DnsServe { listen, records } => dns::serve(listen, &records),
        Command::TagSend(args) => print(&tag::send(&args)?),
        Command::TagRecv(args) => print(&tag::receive(&args)?),
        Command::SctpSend(args) => print(&sctp::send(&args)?),
        Command::SctpRecv(args) => print(&sctp::receive(&args)?),
        Command::SctpEcho(listen) => sctp::echo(listen),
        Command::SctpAsk { target } => print(&sctp::ask(&target)?),
        Command::Ping(args) => print(&ping::ping(&args)?),
        Command::Verifier => verifier::report(),
        Command::Guard { prefix, dir } => crate::guardian::guard(&prefix, &dir),
    }
}

/// The report of a client, and whether it is a success.
trait Report: Serialize {
    /// True if nothing failed.
    fn good(&self) -> bool;
}

fn print(report: &impl Report) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string(report)?);
    Ok(if report.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Identity {
    fn host(&self) -> anyhow::Result<String> {
        match &self.host {
            Some(host) => Ok(host.clone()),
            None => Ok(nix::unistd::gethostname()
                .context("the host name")?
                .to_string_lossy()
                .into_owned()),
        }
    }
}
