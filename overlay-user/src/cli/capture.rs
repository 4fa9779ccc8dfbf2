//! `overlay capture`: packets as containers send and receive them, also where no tool can attach.

use std::{
    fs::File,
    io::{BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use overlay_common::event::SNAP_MAX;

use super::{
    Context,
    error::usage_error,
    events::{Next, PacketArgs, follow, line, print_line, summary},
    pcapng::CaptureFile,
};
use crate::api::{DEFAULT_SNAPLEN, EventKind, EventMessage, EventRequest};

/// Capture packets of this host's containers, as they send and receive them
#[derive(Debug, Args)]
#[command(
    after_help = "Packets are taken where the programs take them from a container and put them into
one: without tunnel headers, with the addresses that the container sees. tcpdump on the host
does not see them there. Each is captured with what became of it; a packet between two
containers of this host twice, once for each; copies of a packet to a group where it is sent only.

When there are more than are read, some are lost, with a count; traffic never waits. --sample
and a short --snaplen help.

Examples:
  overlay capture --network mynet --count 10
  overlay capture -w web.pcapng --endpoint web.1 --port 80 --duration 30s
  overlay capture -w - --sample 100 | tcpdump -r -"
)]
pub(super) struct CaptureArgs {
    /// Write pcapng to a file, or to stdout for `-` [default: a line for each packet]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    packets: PacketArgs,
    /// Bytes of each packet
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SNAPLEN)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=SNAP_MAX as i64))]
    snaplen: u32,
    /// Capture one packet of so many, at random
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
}

/// Runs until it is ended.
pub(super) async fn run(context: &Context, args: &CaptureArgs) -> anyhow::Result<()> {
    let request = EventRequest {
        kinds: [EventKind::Capture].into(),
        snaplen: Some(args.snaplen),
        sample: Some(args.sample),
        ..args.packets.request()
    };
    let told = match &args.write {
        None => {
            follow(context, &request, &args.packets, |message| match message {
                EventMessage::Watching => started(),
                EventMessage::Event(event) => print_line(&line(event)),
                EventMessage::Lost(count) => print_line(&format!("({count} packets lost)")),
            })
            .await?
        }
        Some(path) => {
            let live = path == Path::new("-");
            let mut file = CaptureFile::new(open(path)?, args.snaplen)?;
            let told = follow(context, &request, &args.packets, |message| match message {
                EventMessage::Watching => file.flush().and_then(|()| started()),
                // Whoever reads along must not wait for a buffer to fill.
                EventMessage::Event(event) if live => {
                    ended_by_reader(file.write(event).and_then(|()| file.flush()))
                }
                EventMessage::Event(event) => ended_by_reader(file.write(event)),
                EventMessage::Lost(count) => {
                    file.lose(*count);
                    Ok(Next::More)
                }
            })
            .await?;
            ended_by_reader(file.finish())?;
            told
        }
    };
    summary(EventKind::Capture, told);
    Ok(())
}

fn started() -> anyhow::Result<Next> {
    eprintln!("capturing; end with Ctrl-C");
    Ok(Next::More)
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Write>> {
    if path != Path::new("-") {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Box::new(BufWriter::new(file)));
    }
    if std::io::stdout().is_terminal() {
        return Err(usage_error(
            "a capture is nothing for a terminal",
            "leave out `-w -` for lines to read, or write to a file or a pipe",
        ));
    }
    Ok(Box::new(BufWriter::new(std::io::stdout())))
}

/// A reader that has seen enough, such as `tcpdump -c 1`, is no failure.
fn ended_by_reader(written: anyhow::Result<()>) -> anyhow::Result<Next> {
    match written {
        Ok(()) => Ok(Next::More),
        Err(error) => {
            let broken = error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
            });
            if broken { Ok(Next::Enough) } else { Err(error) }
        }
    }
}
