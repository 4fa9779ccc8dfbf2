//! Packets as fast as they can be received: an XDP program that sends every frame out of the
//! sending host's link, driven with live frames, and a counter that drops them where they arrive.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::{
    kernel::{self, Sink},
    paced, pin,
};

/// What to send, and where.
#[derive(Clone, Debug, Args)]
pub struct FloodArgs {
    /// A file with the frame.
    frame: PathBuf,
    /// The interface to send from.
    device: String,
    /// How many bytes of the frame are written anew each time, as where they are changed on the
    /// way.
    #[arg(long, default_value_t = 0)]
    anew: usize,
    /// How many.
    #[arg(long, default_value_t = 1_000_000)]
    frames: u32,
    /// How many a second, instead of as many as go.
    #[arg(long, requires = "milliseconds")]
    rate: Option<f64>,
    /// For how long at that rate.
    #[arg(long, conflicts_with = "frames")]
    milliseconds: Option<u64>,
}

/// The frames sent.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Flooded {
    /// Frames.
    pub sent: u64,
    /// The duration of the run.
    pub seconds: f64,
}

/// The frames counted.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Received {
    /// Frames.
    pub packets: u64,
}

/// Frames of the small call.
const FEW: u32 = 64;

/// Sends and prints a [`Flooded`].
///
/// # Errors
/// The kernel rejects a call.
pub fn send(args: &FloodArgs) -> anyhow::Result<ExitCode> {
    pin::to_cpu(pin::CLIENT_CPU, pin::Side::Client)?;
    let frame = std::fs::read(&args.frame).context("the frame")?;
    let beginning = frame.get(..args.anew).context("the frame is shorter than that")?;
    let to = (kernel::index_of(&args.device)?, beginning);
    let flooded = match (args.rate, args.milliseconds) {
        (Some(rate), Some(milliseconds)) => {
            paced::send(&frame, to, rate, Duration::from_millis(milliseconds))?
        }
        _ => as_fast_as_they_go(&frame, to, args.frames)?,
    };
    println!("{}", serde_json::to_string(&flooded)?);
    Ok(ExitCode::SUCCESS)
}

fn as_fast_as_they_go(
    frame: &[u8],
    (index, beginning): (u32, &[u8]),
    frames: u32,
) -> anyhow::Result<Flooded> {
    let program = kernel::sender(index, beginning)?;
    // A call takes some 20 ms to set up and to end: a small one measures it.
    let start = Instant::now();
    kernel::run_live(&program, frame, FEW)?;
    let overhead = start.elapsed();
    let start = Instant::now();
    kernel::run_live(&program, frame, frames)?;
    let took = start.elapsed().saturating_sub(overhead);
    let sent = u64::from(FEW) + u64::from(frames);
    Ok(Flooded { sent, seconds: took.as_secs_f64() })
}

/// Counts until SIGTERM and prints a [`Received`]. `by_xdp` also accepts frames that the other end
/// of a veth sends by XDP, as they are: the kernel makes no packets of them.
///
/// # Errors
/// The kernel rejects a call.
pub fn receive(device: &str, by_xdp: bool) -> anyhow::Result<ExitCode> {
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    // Blocked, and taken when it comes: no handler is needed.
    end.thread_block().context("block SIGTERM")?;
    let sink = Sink::attach(device)?;
    let of_frames = by_xdp.then(|| Sink::attach_xdp(device)).transpose()?;
    println!("listening: on {device}");
    end.wait().context("wait for SIGTERM")?;
    let frames = of_frames.map_or(Ok(0), |sink| sink.packets())?;
    println!("{}", serde_json::to_string(&Received { packets: sink.packets()? + frames })?);
    Ok(ExitCode::SUCCESS)
}
