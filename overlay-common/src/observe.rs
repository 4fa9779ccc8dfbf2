//! Counters of endpoints and networks.
//!
//! An endpoint of this node has a small number, its *counter index*. The agent writes it into the
//! entries of the endpoint's address and interface, so that counting a packet takes one array
//! look-up. Index 0 stands for no endpoint.

use crate::{Reason, maps::Counter, pod::plain};

/// Number of counter indexes, index 0 included: how many endpoints of one node have their own
/// counters. The array holds [`Tally`]s of all indexes for each CPU, a MiB.
pub const COUNTER_INDEXES: usize = 1 << 11;

/// Counters of one endpoint, each for one reason in one direction, with room for further ones.
pub const WAYS: usize = 32;

/// Whether an endpoint sent a packet or was to receive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Traffic {
    /// The endpoint sent it.
    Sent = 0,
    /// The endpoint received it, or was to receive it.
    Received = 1,
}

impl Traffic {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Sent, Self::Received];

    /// The direction with this number.
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Sent),
            1 => Some(Self::Received),
            _ => None,
        }
    }

    /// `sent` or `received`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// The index for reasons without a way of their own. It is shown nowhere; a test demands that no
/// packet is counted there.
const NO_WAY: u32 = WAYS as u32 - 1;

/// All ways by their index: index in [`Tally`], direction, reason. The table of reasons has them.
pub const ALL_WAYS: &[(usize, Traffic, Reason)] = {
    const BY_INDEX: [(usize, Traffic, Reason); Reason::WAYS.len()] = {
        let mut sorted = [Reason::WAYS[0]; Reason::WAYS.len()];
        let mut at = 0;
        while at < Reason::WAYS.len() {
            sorted[Reason::WAYS[at].0] = Reason::WAYS[at];
            at += 1;
        }
        sorted
    };
    &BY_INDEX
};

/// Index in [`Tally`] of a packet that was forwarded for a reason.
#[inline(always)]
pub const fn way(traffic: Traffic, reason: Reason) -> u32 {
    reason.way(traffic, NO_WAY)
}

/// Value of map `endpoint_counters`, per-CPU array by counter index: forwarded packets of an
/// endpoint, by [`way`]. Written by the programs; read by the agent, which clears it before it
/// gives the index to another endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// By [`way`].
    pub ways: [Counter; WAYS],
}

/// Key of map `drop_counters`, a per-CPU hash of [`Counter`]: drops by endpoint, network and
/// reason. Entries are made by the programs and removed by the agent with their endpoint or
/// network. A full map loses only this breakdown: map `counters` has every drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct DropKey {
    /// The network; [`crate::UNDERLAY_VNI`] for packets without a known network.
    pub vni: u32,
    /// Counter index of the endpoint; 0 for packets without an endpoint on this node.
    pub counter: u16,
    /// The [`Reason`].
    pub reason: u8,
    /// A [`Traffic`].
    pub traffic: u8,
}

/// Most entries of `drop_counters`.
pub const DROP_COUNTERS: usize = 1 << 14;

plain!(Tally, DropKey);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_hidden_padding() {
        let DropKey { vni, counter, reason, traffic } = DropKey::default();
        let sum = size_of_val(&vni)
            + size_of_val(&counter)
            + size_of_val(&reason)
            + size_of_val(&traffic);
        assert_eq!(sum, size_of::<DropKey>());
        assert_eq!(size_of::<Tally>(), WAYS * size_of::<Counter>());
        assert!(COUNTER_INDEXES <= usize::from(u16::MAX) + 1, "an index fits a DropKey");
    }

    #[test]
    fn ways_have_indexes_of_their_own() {
        let mut indexes: Vec<_> = ALL_WAYS.iter().map(|(index, _, _)| *index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        assert_eq!(indexes.len(), ALL_WAYS.len());
        assert!(indexes.iter().all(|index| *index < NO_WAY as usize));
        for (index, traffic, reason) in ALL_WAYS {
            assert_eq!(way(*traffic, *reason) as usize, *index);
        }
        assert_eq!(way(Traffic::Received, Reason::Encapsulated), NO_WAY);
    }

    #[test]
    fn a_direction_survives_its_number() {
        for traffic in Traffic::ALL {
            assert_eq!(Traffic::from_index(traffic as u8), Some(traffic));
        }
        assert_eq!(Traffic::from_index(2), None);
    }
}
