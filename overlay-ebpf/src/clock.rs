//! The time that entries of flows are stamped with.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;

/// A time stamp is written at most this often, in ns, so that a busy flow does not dirty its cache
/// line on every packet.
pub const RESOLUTION: u64 = 1_000_000_000;

/// CLOCK_MONOTONIC in ns, as of the last tick (Linux 5.11).
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}
