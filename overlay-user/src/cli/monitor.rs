//! `overlay monitor`: drops and new flows as they happen.

use clap::{Args, ValueEnum};

use super::{
    Context,
    events::{PacketArgs, follow, line, print_line, summary},
};
use crate::api::{EventKind, EventMessage, EventRequest};

/// Show drops with their headers and new flows of this host as they happen
#[derive(Debug, Args)]
#[command(
    after_help = "The programs tell of events only while somebody watches. When there are more than are
read, some are lost, with a count; traffic never waits.

Examples:
  overlay monitor
  overlay monitor --type drop --network mynet
  overlay monitor --reason spoofed_source --format json --count 1"
)]
pub(super) struct MonitorArgs {
    /// What to show; may be given twice [default: both]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kinds: Vec<EventKind>,
    /// Only with this reason, as `overlay bpf counters` has it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    #[command(flatten)]
    packets: PacketArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: LineFormat,
}

/// How events are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LineFormat {
    /// A line for people
    #[default]
    Text,
    /// A JSON object a line
    Json,
}

/// Runs until it is ended.
pub(super) async fn run(context: &Context, args: &MonitorArgs) -> anyhow::Result<()> {
    let kinds = match args.kinds.as_slice() {
        [] => [EventKind::Drop, EventKind::Flow].into(),
        kinds => kinds.iter().copied().collect(),
    };
    let request = EventRequest { kinds, reason: args.reason.clone(), ..args.packets.request() };
    let told = follow(context, &request, &args.packets, |message| match message {
        EventMessage::Watching => {
            eprintln!("watching; end with Ctrl-C");
            Ok(super::events::Next::More)
        }
        EventMessage::Event(event) if args.format == LineFormat::Text => print_line(&line(event)),
        EventMessage::Lost(count) if args.format == LineFormat::Text => {
            print_line(&format!("({count} events lost)"))
        }
        message => print_line(&serde_json::to_string(message)?),
    })
    .await?;
    summary(EventKind::Drop, told);
    Ok(())
}
