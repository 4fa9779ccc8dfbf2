//! Signals as a stream of events, with their senders.

use std::io;

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// Signals that `overlay run` takes: those it acts on or passes on, and the children's.
const TAKEN: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
];

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub signal: Signal,
    /// From the kernel, for a key on the terminal: its whole process group has it.
    pub from_terminal: bool,
}

/// The signals of this process, blocked from now on and read from a descriptor.
pub(super) struct Signals {
    descriptor: AsyncFd<SignalFd>,
    before: SigSet,
}

impl Signals {
    /// Blocks the signals. To be called before there are other threads.
    pub(super) fn take() -> io::Result<Self> {
        let taken: SigSet = TAKEN.into_iter().collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&taken), Some(&mut before))?;
        let descriptor =
            SignalFd::with_flags(&taken, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // SAFETY: a SignalFd owns its descriptor and keeps it open and the same until it is
        // dropped.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(Self { descriptor, before })
    }

    /// The mask from before, for the command to start with.
    pub(super) fn mask_before(&self) -> SigSet {
        self.before
    }

    /// A signal that has arrived already.
    pub(super) fn try_next(&mut self) -> io::Result<Option<Received>> {
        let Some(info) = self.descriptor.get_mut().read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
        Ok(Some(Received {
            signal: Signal::try_from(number)?,
            from_terminal: info.ssi_code == libc::SI_KERNEL,
        }))
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> io::Result<Received> {
        loop {
            if let Some(received) = self.try_next()? {
                return Ok(received);
            }
            self.descriptor.readable_mut().await?.clear_ready();
        }
    }
}
