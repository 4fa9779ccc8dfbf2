//! The clock of the programs.

/// Nanoseconds of CLOCK_MONOTONIC, as in [`overlay_common::maps::Conntrack::last_seen`].
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |t| {
        let (seconds, nanos) = (t.tv_sec().unsigned_abs(), t.tv_nsec().unsigned_abs());
        seconds * 1_000_000_000 + nanos
    })
}
