//! Counting and, with feature `log`, telling.

use aya_ebpf::programs::TcContext;
use overlay_common::Reason;

use crate::maps::COUNTER;

/// Counts a packet of `length` bytes under `reason`.
#[inline(always)]
pub fn count(reason: Reason, length: u32) {
    if let Some(counter) = COUNTER.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU slot that only this program run touches.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(length);
        }
    }
}

/// Tells of a drop through aya-log.
#[inline(always)]
pub fn log_drop(ctx: &TcContext, reason: Reason) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "dropped {} bytes, reason {}", ctx.len(), reason as u32);
    #[cfg(not(feature = "log"))]
    let _ = (ctx, reason);
}
