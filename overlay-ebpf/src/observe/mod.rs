//! Counting and, with feature `log`, telling.

pub mod event;

use aya_ebpf::{bindings::BPF_NOEXIST, programs::TcContext};
use overlay_common::{
    Reason, UNDERLAY_VNI,
    maps::{Counter, Link},
    observe::{DropKey, Traffic, WAYS, way},
};

use crate::{
    maps::{COUNTER, DROP_COUNTER, ENDPOINT_COUNTERS, NETWORKS, lookup},
    outcome::Verdict,
};

/// The endpoint of this node that a packet is counted for, as far as it is known.
#[derive(Clone, Copy)]
pub struct Party {
    /// Whether it sent the packet or is to receive it.
    pub traffic: Traffic,
    /// Its network, or the one that a tunnel packet claims.
    pub vni: u32,
    /// Its slot; 0 when it is not known.
    pub slot: u32,
}

impl Party {
    /// The endpoint behind an interface.
    #[inline(always)]
    pub fn sender(link: &Link) -> Self {
        Self { traffic: Traffic::Sent, vni: link.vni, slot: link.slot }
    }

    /// Whoever the packet turns out to be for.
    #[inline(always)]
    pub fn receiver() -> Self {
        Self { traffic: Traffic::Received, vni: UNDERLAY_VNI, slot: 0 }
    }
}

/// Counts a packet of `length` bytes under `reason`.
#[inline(always)]
pub fn count(reason: Reason, length: u32) {
    if let Some(counter) = COUNTER.get_ptr_mut(reason as u32) {
        add(counter, length);
    }
}

/// Counts a packet that goes on: for itself, for its sender, and for the endpoint that it went to, if any.
#[inline(always)]
pub fn forwarded(party: &Party, verdict: Verdict, length: u32) {
    let (reason, receiver) = (verdict.reason(), verdict.slot());
    count(reason, length);
    if party.traffic == Traffic::Sent {
        tally(party.slot, way(Traffic::Sent, reason), length);
    }
    tally(receiver, way(Traffic::Received, reason), length);
}

/// Counts a copy of a packet that went to the endpoint with slot `receiver`, for that endpoint only.
#[inline(always)]
pub fn received(receiver: u32, reason: Reason, length: u32) {
    tally(receiver, way(Traffic::Received, reason), length);
}

/// Counts a packet that is dropped: for itself, and for its endpoint and network.
#[inline(always)]
pub fn dropped(party: &Party, reason: Reason, length: u32) {
    count(reason, length);
    attribute(party.vni, party.slot, party.traffic as u32, reason as u32, length);
}

/// The breakdown of a drop. A network that is not known here could be any number that a packet
/// claims, and would fill the map.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn attribute(vni: u32, slot: u32, traffic: u32, reason: u32, length: u32) -> i64 {
    let vni = if lookup(&NETWORKS, &vni).is_some() { vni } else { UNDERLAY_VNI };
    let key = DropKey { vni, slot: slot as u16, reason: reason as u8, traffic: traffic as u8 };
    if let Some(counter) = DROP_COUNTER.get_ptr_mut(&key) {
        add(counter, length);
        return 0;
    }
    let first = Counter { packets: 1, bytes: u64::from(length) };
    if DROP_COUNTER.insert(&key, &first, u64::from(BPF_NOEXIST)).is_err()
        // Another CPU was first, or the map is full.
        && let Some(counter) = DROP_COUNTER.get_ptr_mut(&key)
    {
        add(counter, length);
    }
    0
}

#[inline(always)]
fn tally(slot: u32, way: u32, length: u32) {
    if slot == 0 {
        return;
    }
    if let Some(tally) = ENDPOINT_COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the index is smaller than the array, whose slot is this CPU's own.
        let counter =
            unsafe { (&raw mut (*tally).ways).cast::<Counter>().add(way as usize % WAYS) };
        add(counter, length);
    }
}

#[inline(always)]
fn add(counter: *mut Counter, length: u32) {
    // SAFETY: a per-CPU value of a successful look-up, which only this program run touches.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(length);
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
