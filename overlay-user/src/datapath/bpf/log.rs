//! The log lines of the programs (feature `log`), printed as the agent's own.

use std::os::fd::AsFd as _;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{kernel, words};
use crate::datapath::DatapathError;

/// Reads the log lines on a thread of its own until the process ends.
///
/// # Errors
/// [`DatapathError::Kernel`] when the object was built without log lines.
pub(super) fn start(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let failed = |e: &dyn std::error::Error| kernel("read the programs' log", words(e));
    let mut logger = EbpfLogger::init(ebpf).map_err(|e| failed(&e))?;
    let print = move || {
        loop {
            let mut ready = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) => logger.flush(),
                Err(Errno::EINTR) => {}
                Err(e) => return tracing::error!("the programs' log ends: {e}"),
            }
        }
    };
    let thread = std::thread::Builder::new().name("datapath-log".to_owned());
    thread.spawn(print).map(drop).map_err(|e| failed(&e))
}
