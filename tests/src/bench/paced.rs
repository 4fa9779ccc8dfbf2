//! Frames at a steady rate: the program that sends live frames reads the clock, sends one when it
//! is due and drops the others. While it waits, the kernel receives on the same CPU, as it would
//! receive packets of another machine.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use super::{
    flood::Flooded,
    kernel::{self, ProgramType, instruction, set},
};

/// The program's state: when the next frame is due, how many were sent, and when the first and the
/// last were; by `CLOCK_MONOTONIC`, in nanoseconds.
const STATE: u32 = 32;
const SENT: usize = 8;
const FIRST: usize = 16;
const LAST: usize = 24;

/// The most frames that are sent at once when they are late. Further late frames are dropped from
/// the schedule.
const BURST: u32 = 32;

/// `XDP_DROP`.
const DROP: u32 = 1;

/// Like [`kernel::sender`], but sends only when a frame is due.
fn sender(
    map: &OwnedFd,
    interval: u32,
    (ifindex, beginning): (u32, &[u8]),
) -> anyhow::Result<OwnedFd> {
    const LOOKUP: u32 = 1;
    const CLOCK: u32 = 5;
    const CALL: u8 = 0x85;
    const EXIT: u64 = 0x95;
    let behind = i32::try_from(BURST.saturating_mul(interval)).context("the rate is too small")?;
    let mut program = vec![
        // r6 = the context
        instruction(0xbf, (6, 1), 0, 0),
        // The map, in two halves.
        instruction(0x18, (1, 1), 0, map.as_raw_fd().unsigned_abs()),
        0,
        // *(u32 *)(r10 - 4) = 0; r2 = r10 - 4
        instruction(0x62, (10, 0), -4, 0),
        instruction(0xbf, (2, 10), 0, 0),
        instruction(0x07, (2, 0), 0, 4u32.wrapping_neg()),
        instruction(CALL, (0, 0), 0, LOOKUP),
        // if r0 != 0 skip two
        instruction(0x55, (0, 0), 2, 0),
        set(0, DROP),
        EXIT,
        // r7 = the state, r0 = now, r1 = when the next one is due
        instruction(0xbf, (7, 0), 0, 0),
        instruction(CALL, (0, 0), 0, CLOCK),
        instruction(0x79, (1, 7), 0, 0),
        // if r1 <= r0 skip two
        instruction(0xbd, (1, 0), 2, 0),
        set(0, DROP),
        EXIT,
        // if r1 == 0 r1 = r0
        instruction(0x55, (1, 0), 1, 0),
        instruction(0xbf, (1, 0), 0, 0),
        // r2 = r0 - behind; if r1 < r2 r1 = r2
        instruction(0xbf, (2, 0), 0, 0),
        instruction(0x17, (2, 0), 0, behind.unsigned_abs()),
        instruction(0x3d, (1, 2), 1, 0),
        instruction(0xbf, (1, 2), 0, 0),
        // The next one is due an interval later.
        instruction(0x07, (1, 0), 0, interval),
        instruction(0x7b, (7, 1), 0, 0),
        // r1 = ++sent; if r1 == 1 first = now
        instruction(0x79, (1, 7), SENT as i16, 0),
        instruction(0x07, (1, 0), 0, 1),
        instruction(0x7b, (7, 1), SENT as i16, 0),
        instruction(0x55, (1, 0), 1, 1),
        instruction(0x7b, (7, 0), FIRST as i16, 0),
        // last = now; r1 = the context
        instruction(0x7b, (7, 0), LAST as i16, 0),
        instruction(0xbf, (1, 6), 0, 0),
    ];
    program.extend(kernel::sending(ifindex, beginning)?);
    kernel::load(ProgramType::Xdp, &program)
}

/// Sends frames at a rate, in frames a second, for a while.
///
/// # Errors
/// The kernel rejects the program, or hardly any frames were sent.
pub fn send(
    frame: &[u8],
    to: (u32, &[u8]),
    rate: f64,
    duration: Duration,
) -> anyhow::Result<Flooded> {
    // The cast saturates only for rates that no machine reaches or that were rejected.
    let interval = (1e9 / rate) as u32;
    let map = kernel::array(STATE, 1).context("make the generator's state")?;
    let program = sender(&map, interval, to)?;
    interrupt_after(duration)?;
    let ran = kernel::run_live(&program, frame, i32::MAX.unsigned_abs());
    interrupt_after(Duration::ZERO)?;
    if let Err(error) = ran {
        let interrupted = error.downcast_ref::<Errno>() == Some(&Errno::EINTR);
        ensure!(interrupted, error);
    }
    let mut state = [0; STATE as usize];
    kernel::look_up(&map, 0, &mut state)?;
    let field = |at: usize| -> anyhow::Result<u64> {
        let bytes = state.get(at..at + 8).context("the state is larger")?;
        Ok(u64::from_ne_bytes(bytes.try_into()?))
    };
    let (sent, first, last) = (field(SENT)?, field(FIRST)?, field(LAST)?);
    ensure!(sent > 1 && last > first, "{sent} frames were sent in {duration:?}");
    // Between the first and the last frame there is one interval less than there are frames.
    let seconds = (last - first) as f64 / 1e9 * sent as f64 / (sent - 1) as f64;
    Ok(Flooded { sent, seconds })
}

extern "C" fn nothing(_: libc::c_int) {}

/// Makes a signal interrupt this process's call after `duration`, and repeats it in case it came
/// before the call. A duration of zero means that no signal comes.
fn interrupt_after(duration: Duration) -> anyhow::Result<()> {
    // Without SA_RESTART.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("take SIGALRM")?;
    let time = libc::timeval {
        tv_sec: i64::try_from(duration.as_secs())?,
        tv_usec: i64::from(duration.subsec_micros()),
    };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the times live through the call, which only reads them.
    let result =
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    Errno::result(result).context("set the timer").map(drop)
}
