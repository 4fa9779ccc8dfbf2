//! The command line: a file per noun. Commands talk to the daemon of this host over its unix
//! socket; only `init`, `join`, `run` and `datapath` do work of their own.

mod agent;
mod args;
mod bpf;
mod capture;
mod completions;
mod datapath;
mod endpoint;
mod error;
mod events;
mod format;
mod health;
mod init;
pub mod inspect;
mod ipvs;
mod monitor;
mod network;
mod node;
mod pcapng;
mod progress;
mod run;
mod service;
mod status;
mod token;
mod traffic;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    agent::LocalClient,
    api::{LocalRequest, Request, Status},
    model::ClusterState,
    paths::Paths,
};

/// Cross-host container networks whose packet path is eBPF.
#[derive(Debug, Parser)]
#[command(name = "overlay", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Example, on three hosts:
  h1# overlay init --advertise-addr 172.16.1.10
  h2# overlay join --token TOKEN 172.16.1.10:2377
  h1# overlay network create mynet
  h1# overlay service create hello --network mynet -p 8080:8080
  h2# overlay run --service hello -- python3 -m http.server 8080")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command: where this host's daemon keeps things.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// State that survives reboots
    #[arg(long, global = true, value_name = "DIR", env = "OVERLAY_STATE_DIR")]
    #[arg(default_value = "/var/lib/overlay", hide_env_values = true)]
    state_dir: PathBuf,
    /// Socket and lock of the daemon
    #[arg(long, global = true, value_name = "DIR", env = "OVERLAY_RUN_DIR")]
    #[arg(default_value = "/run/overlay", hide_env_values = true)]
    run_dir: PathBuf,
    /// Pinned maps and programs, in a bpffs
    #[arg(long, global = true, value_name = "DIR", env = "OVERLAY_PIN_DIR")]
    #[arg(default_value = "/sys/fs/bpf/overlay", hide_env_values = true)]
    pin_dir: PathBuf,
    /// What is logged on stderr: error, warn, info, debug, trace, or a filter such as
    /// `overlay=debug,info` [default: info for the agent, else warn]
    #[arg(long, global = true, value_name = "LEVEL", env = "OVERLAY_LOG")]
    #[arg(hide_env_values = true)]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Box<init::InitArgs>),
    Join(Box<init::JoinArgs>),
    Leave(init::LeaveArgs),
    Agent(agent::AgentArgs),
    Status(status::StatusArgs),
    /// Networks
    #[command(
        subcommand,
        after_help = "Examples:
  overlay network create mynet
  overlay network inspect ingress"
    )]
    Network(network::NetworkCommand),
    /// Services: a name, a virtual address and published ports in front of backends
    #[command(
        subcommand,
        after_help = "Examples:
  overlay service create hello --network mynet -p 8080:8080
  overlay service ps hello"
    )]
    Service(service::ServiceCommand),
    /// Hosts of the cluster
    #[command(
        subcommand,
        after_help = "Examples:
  overlay node ls
  overlay node drain h2"
    )]
    Node(node::NodeCommand),
    /// Interfaces of containers and other network namespaces
    #[command(
        subcommand,
        after_help = "Examples:
  overlay endpoint attach --netns web --network mynet
  overlay endpoint ls"
    )]
    Endpoint(endpoint::EndpointCommand),
    Run(Box<run::RunArgs>),
    /// Join tokens
    #[command(
        subcommand,
        after_help = "Examples:
  overlay token create --ttl 1h
  overlay token ls"
    )]
    Token(token::TokenCommand),
    Monitor(monitor::MonitorArgs),
    Capture(capture::CaptureArgs),
    Bpf(bpf::BpfArgs),
    Ipvs(ipvs::IpvsArgs),
    /// The datapath of this host without a controller
    #[command(
        subcommand,
        after_help = "Examples:
  overlay datapath load --iface eth0
  overlay datapath unload"
    )]
    Datapath(datapath::DatapathCommand),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    RunChild(run::ChildArgs),
    #[command(hide = true)]
    KeepSockets(agent::KeepSocketsArgs),
}

/// What every command needs: the directories and the way to the daemon.
#[derive(Clone, Debug)]
struct Context {
    paths: Paths,
    /// `--log-level` as given, for the daemon that `init` and `join` start.
    log_level: Option<String>,
}

impl Context {
    fn client(&self) -> LocalClient {
        LocalClient::new(&self.paths)
    }

    async fn state(&self) -> anyhow::Result<ClusterState> {
        Ok(self.client().call(Request::State {}).await?)
    }

    async fn status(&self) -> anyhow::Result<Status> {
        Ok(self.client().local(LocalRequest::Status {}).await?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(code) => code,
        Err(error) => error::report(&error),
    }
}

/// Parses and runs a command line, whose first item is the program's name.
fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return Ok(error::usage(&e)),
    };
    let Cli { global: Global { state_dir, run_dir, pin_dir, log_level }, command } = cli;
    if let Command::RunChild(args) = command {
        // Must stay single-threaded: it changes its namespaces.
        return run::child(&args);
    }
    if let Command::KeepSockets(args) = command {
        // Must stay single-threaded: it forks.
        return agent::keep_sockets(&args);
    }
    let default_level = if matches!(command, Command::Agent(_)) { "info" } else { "warn" };
    start_logging(log_level.as_deref().unwrap_or(default_level))?;
    let context = Context {
        paths: Paths {
            state_dir: std::path::absolute(state_dir)?,
            run_dir: std::path::absolute(run_dir)?,
            pin_dir: std::path::absolute(pin_dir)?,
        },
        log_level,
    };
    match command {
        Command::Agent(args) => agent::run(&context, &args).map(|()| ExitCode::SUCCESS),
        Command::Completions(args) => completions::run(&args).map(|()| ExitCode::SUCCESS),
        command => dispatch(&context, command),
    }
}

/// Runs the commands that wait for the daemon or for a child, on a runtime of one thread: the
/// parent-death signal of `overlay run` hangs on the thread that forks.
fn dispatch(context: &Context, command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => return run::run(context, *args).await,
            Command::Init(args) => init::init(context, *args).await?,
            Command::Join(args) => init::join(context, *args).await?,
            Command::Leave(args) => init::leave(context, &args).await?,
            Command::Status(args) => status::run(context, &args).await?,
            Command::Network(command) => network::run(context, command).await?,
            Command::Service(command) => service::run(context, command).await?,
            Command::Node(command) => node::run(context, command).await?,
            Command::Endpoint(command) => endpoint::run(context, command).await?,
            Command::Token(command) => token::run(context, command).await?,
            Command::Monitor(args) => monitor::run(context, &args).await?,
            Command::Capture(args) => capture::run(context, &args).await?,
            Command::Bpf(args) => bpf::run(context, &args).await?,
            Command::Ipvs(args) => ipvs::run(context, &args).await?,
            Command::Datapath(command) => datapath::run(&context.paths, command).await?,
            Command::Agent(_)
            | Command::Completions(_)
            | Command::RunChild(_)
            | Command::KeepSockets(_) => {
                unreachable!("run() handles these before there is a runtime")
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn start_logging(filter: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|e| {
        error::usage_error(
            format!("--log-level {filter:?} is not understood: {e}"),
            "use error, warn, info, debug or trace",
        )
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

#[cfg(test)]
mod tests;
