//! The limit of flows to the outside for an endpoint. The programs only count up; the agent counts
//! the live flows and corrects the number every few seconds.

use aya_ebpf::bindings::BPF_ANY;
use overlay_common::{
    Reason,
    maps::{SNAT_USAGE_UNCOUNTED, SnatUsage},
};

use crate::{clock::now, maps::SNAT_USAGE};

/// Whether the endpoint behind interface `ifindex` may open another flow. CPUs that check at the
/// same time may exceed the limit by one flow each.
///
/// # Errors
/// [`Reason::MasqueradeLimit`].
#[inline(always)]
pub fn check(ifindex: u32, limit: u32) -> Result<(), Reason> {
    let Some(usage) = SNAT_USAGE.get_ptr_mut(&ifindex) else {
        return if limit == 0 { Err(Reason::MasqueradeLimit) } else { Ok(()) };
    };
    // SAFETY: the pointer comes from a successful look-up. A write of another CPU or of the agent
    // at the same time makes the number wrong by a few, until the agent counts again.
    let usage = unsafe { &mut *usage };
    if usage.flows < limit {
        return Ok(());
    }
    let now = now();
    if now.wrapping_sub(usage.counted) > SNAT_USAGE_UNCOUNTED && now > usage.counted {
        usage.flows /= 2;
        usage.counted = now;
    }
    if usage.flows < limit { Ok(()) } else { Err(Reason::MasqueradeLimit) }
}

/// Counts a new flow.
#[inline(always)]
pub fn add(ifindex: u32) {
    if let Some(usage) = SNAT_USAGE.get_ptr_mut(&ifindex) {
        // SAFETY: as above.
        let usage = unsafe { &mut *usage };
        usage.flows = usage.flows.wrapping_add(1);
        return;
    }
    let usage = SnatUsage { flows: 1, pad: 0, counted: now() };
    // If the table has no room for the interface, its endpoint has no limit.
    let _ = SNAT_USAGE.insert(&ifindex, &usage, u64::from(BPF_ANY));
}
