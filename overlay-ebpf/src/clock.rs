//! The time stamps of flow entries.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;

/// Shortest interval in ns between two writes of a time stamp, so that a busy flow does not dirty
/// its cache line on every packet.
pub const RESOLUTION: u64 = 1_000_000_000;

/// CLOCK_MONOTONIC in ns at the last tick (Linux 5.11).
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}
