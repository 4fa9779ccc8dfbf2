//! Selects the counters of a packet: "the endpoint that sent it or that it was for, and its
//! network".

use overlay_common::{
    Reason, UNDERLAY_VNI,
    observe::{ALL_WAYS, COUNTER_INDEXES, DropKey, Traffic},
};

use super::{
    Verdict,
    walk::{End, Outcome, Walk},
};

/// The endpoint of this node that a packet belongs to, as far as the program knows.
#[derive(Clone, Copy, Debug)]
pub struct Party {
    /// Whether the endpoint sent the packet.
    pub traffic: Traffic,
    /// Its network.
    pub vni: u32,
    /// Its counter index.
    pub counter: u32,
}

impl Party {
    /// A packet from the underlay has no endpoint.
    pub const fn none() -> Self {
        Self { traffic: Traffic::Received, vni: UNDERLAY_VNI, counter: 0 }
    }
}

impl Walk<'_> {
    /// Counts the end of a packet of `length` bytes, and returns its verdict.
    pub fn conclude(&mut self, outcome: Outcome, length: usize) -> Verdict {
        let (reason, verdict) = match outcome {
            Ok(End::Pass) => return Verdict::Pass,
            Ok(End::Sent(reason)) => (reason, Verdict::Sent),
            Ok(End::Left(reason)) => (reason, Verdict::Pass),
            Ok(End::Copied(reason)) | Err(reason) => (reason, Verdict::Drop),
        };
        self.count(reason, length);
        match outcome {
            Ok(End::Sent(_) | End::Copied(_)) => self.tell_forwarded(reason, length),
            Err(_) => self.tell_dropped(reason, length),
            Ok(_) => {}
        }
        verdict
    }

    /// Counts a forwarded packet for its sender and for the endpoint that received it.
    fn tell_forwarded(&mut self, reason: Reason, length: usize) {
        let sender = if self.party.traffic == Traffic::Sent { self.party.counter } else { 0 };
        for (counter, traffic) in [(sender, Traffic::Sent), (self.delivered, Traffic::Received)] {
            self.tell(counter, traffic, reason, length);
        }
    }

    /// Counts a packet for the endpoint with a counter index.
    pub fn tell(&mut self, counter: u32, traffic: Traffic, reason: Reason, length: usize) {
        let exists = (1..COUNTER_INDEXES).contains(&(counter as usize));
        if exists && ALL_WAYS.iter().any(|(_, t, r)| (*t, *r) == (traffic, reason)) {
            let counter = self.told.forwarded.entry((counter, traffic, reason)).or_default();
            counter.packets += 1;
            counter.bytes += length as u64;
        }
    }

    /// Counts a packet that is dropped. The packet's network counts only if it exists.
    pub fn tell_dropped(&mut self, reason: Reason, length: usize) {
        let Party { traffic, vni, counter } = self.party;
        let vni = if self.tables.network(vni).is_some() { vni } else { UNDERLAY_VNI };
        let (counter, reason, traffic) = (counter as u16, reason as u8, traffic as u8);
        let counter =
            self.told.dropped.entry(DropKey { vni, counter, reason, traffic }).or_default();
        counter.packets += 1;
        counter.bytes += length as u64;
    }
}
