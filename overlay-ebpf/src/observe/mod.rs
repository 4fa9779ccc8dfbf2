//! Counters and, with feature `log`, log messages.

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

/// The endpoint of this node that a packet counts for, as far as it is known.
#[derive(Clone, Copy)]
pub struct Party {
    /// Whether the endpoint sent the packet or receives it.
    pub traffic: Traffic,
    /// The endpoint's network, or the VNI in a tunnel packet.
    pub vni: u32,
    /// The endpoint's counter index; 0 if it is not known.
    pub counter: u32,
}

impl Party {
    /// The endpoint behind an interface.
    #[inline(always)]
    pub fn sender(link: &Link) -> Self {
        Self { traffic: Traffic::Sent, vni: link.vni, counter: link.counter }
    }

    /// The receiver of the packet, not known yet.
    #[inline(always)]
    pub fn receiver() -> Self {
        Self { traffic: Traffic::Received, vni: UNDERLAY_VNI, counter: 0 }
    }
}

/// Counts a packet of `length` bytes under `reason`.
#[inline(always)]
pub fn count(reason: Reason, length: u32) {
    if let Some(counter) = COUNTER.get_ptr_mut(reason as u32) {
        add(counter, length);
    }
}

/// Counts a forwarded packet: in total, for its sender, and for the endpoint that received it.
#[inline(always)]
pub fn forwarded(party: &Party, verdict: Verdict, length: u32) {
    let (reason, receiver) = (verdict.reason(), verdict.counter());
    count(reason, length);
    if party.traffic == Traffic::Sent {
        tally(party.counter, way(Traffic::Sent, reason), length);
    }
    tally(receiver, way(Traffic::Received, reason), length);
}

/// Counts a copy of a packet for the endpoint with counter index `receiver` only.
#[inline(always)]
pub fn received(receiver: u32, reason: Reason, length: u32) {
    tally(receiver, way(Traffic::Received, reason), length);
}

/// Counts a dropped packet: in total, and for its endpoint and network.
#[inline(always)]
pub fn dropped(party: &Party, reason: Reason, length: u32) {
    count(reason, length);
    attribute(party.vni, party.counter, party.traffic as u32, reason as u32, length);
}

/// Counts a drop by endpoint and network. A tunnel packet may claim any VNI, so an unknown one is
/// not counted by itself: it would fill the map.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn attribute(vni: u32, counter: u32, traffic: u32, reason: u32, length: u32) -> i64 {
    let vni = if lookup(&NETWORKS, &vni).is_some() { vni } else { UNDERLAY_VNI };
    let key =
        DropKey { vni, counter: counter as u16, reason: reason as u8, traffic: traffic as u8 };
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
fn tally(index: u32, way: u32, length: u32) {
    if index == 0 {
        return;
    }
    if let Some(tally) = ENDPOINT_COUNTERS.get_ptr_mut(index) {
        // SAFETY: the index is smaller than the array, whose entry is this CPU's own.
        let counter =
            unsafe { (&raw mut (*tally).ways).cast::<Counter>().add(way as usize % WAYS) };
        add(counter, length);
    }
}

#[inline(always)]
fn add(counter: *mut Counter, length: u32) {
    // SAFETY: a per-CPU value from a successful look-up, which only this program run touches.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(length);
    }
}

/// Logs a drop through aya-log.
#[inline(always)]
pub fn log_drop(ctx: &TcContext, reason: Reason) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "dropped {} bytes, reason {}", ctx.len(), reason as u32);
    #[cfg(not(feature = "log"))]
    let _ = (ctx, reason);
}
