//! Records that the programs write to ring buffer map `events` while a watcher is there.
//!
//! A record is an [`Event`]. It is followed by [`Event::captured`] bytes of the packet or, for a
//! new flow, by a [`FlowStart`]. A record that does not fit the ring is lost and counted: no packet
//! waits for a watcher.

use crate::{
    Be16,
    maps::{Conntrack, ConntrackKey},
    pod::plain,
};

/// Size of the ring in bytes: room for some thousand drops, or for captured packets of full size.
pub const EVENT_RING: usize = 1 << 20;

/// Most bytes of a packet in a record.
pub const SNAP_MAX: usize = 1 << 14;

/// Bytes of a dropped packet in a record. They hold all headers of a tunnel packet and of the
/// packet inside.
pub const DROP_SNAP: usize = 192;

/// Map `watch`, array of one: what the programs report. Written by the agent while it has watchers;
/// read by `from_container`, `from_underlay` and `xdp_underlay` for each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// End of the watch in ns of CLOCK_MONOTONIC. If the agent dies, the programs stop reporting
    /// soon after.
    pub until: u64,
    /// Bits of `WATCH_*`; 0 without watchers.
    pub flags: u32,
    /// Bytes of a captured packet in its record, at most [`SNAP_MAX`].
    pub snap: u32,
    /// One of this many packets is captured; 0 and 1 mean all.
    pub sample: u32,
    /// Capture only IP packets to or from this address; IPv4 as `::ffff:a.b.c.d`, zero for any.
    pub host: [u8; 16],
    /// Capture only packets to or from this TCP or UDP port; zero for any.
    pub port: Be16,
    /// Capture only packets with this IP protocol number; zero for any.
    pub protocol: u8,
    /// Padding, zero.
    pub pad: u8,
}

/// Report drops.
pub const WATCH_DROPS: u32 = 1 << 0;
/// Report new flows.
pub const WATCH_FLOWS: u32 = 1 << 1;
/// Report packets that endpoints send and receive.
pub const WATCH_CAPTURE: u32 = 1 << 2;
/// Capture the packets of all endpoints. Without it only endpoints with an entry in map `watched`
/// are captured.
pub const WATCH_ALL: u32 = 1 << 3;

/// Map `watched`, array by counter index: 1 if packets of the endpoint are captured, otherwise 0.
/// Written by the agent.
pub type Watched = u32;

/// Map `lost_events`, per-CPU array by kind of event ([`EVENT_DROP`] and so on): records that did
/// not fit the ring. Written by the programs.
pub type Lost = u64;

/// A packet was dropped.
pub const EVENT_DROP: u8 = 0;
/// A new flow got a backend.
pub const EVENT_FLOW: u8 = 1;
/// An endpoint sent the packet, which is captured as sent, or the packet was delivered to an
/// endpoint.
pub const EVENT_CAPTURE: u8 = 2;
/// Number of kinds.
pub const EVENT_KINDS: usize = 3;

/// Entries of `lost_events`, with room for further kinds: a pinned array keeps its size.
pub const LOST_EVENTS_ENTRIES: usize = 16;

/// The header of a record.
///
/// Map `events`, ring buffer: drops, new flows and captured packets, as map `watch` asks for them.
/// Written by the programs; read by the agent, which passes the records on to its watchers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Time in ns of CLOCK_MONOTONIC.
    pub time: u64,
    /// One of `EVENT_*`.
    pub kind: u8,
    /// A [`crate::observe::Traffic`].
    pub traffic: u8,
    /// The [`crate::Reason`] for which the packet was forwarded or dropped.
    pub reason: u8,
    /// Padding, zero.
    pub pad: u8,
    /// Index of the interface that the packet arrived on; 0 for flows.
    pub ifindex: u32,
    /// The network if the program knew it, otherwise [`crate::UNDERLAY_VNI`].
    pub vni: u32,
    /// Counter index of the endpoint; 0 if it is not known.
    pub counter: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Number of bytes that follow this header.
    pub captured: u32,
}

/// The data that follow the [`Event`] of a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowStart {
    /// The flow's tuple, as its first packet has it.
    pub key: ConntrackKey,
    /// Padding, zero.
    pub pad: u32,
    /// The flow's translation.
    pub entry: Conntrack,
}

/// The record of a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEvent {
    /// The header.
    pub event: Event,
    /// The flow.
    pub flow: FlowStart,
}

plain!(Watch, Event, FlowStart, FlowEvent);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<Watch>(), 8 + 3 * 4 + 16 + 2 + 1 + 1);
        assert_eq!(size_of::<Event>(), 8 + 4 + 5 * 4);
        let flow = size_of::<ConntrackKey>() + 4 + size_of::<Conntrack>();
        assert_eq!(size_of::<FlowStart>(), flow);
        assert_eq!(size_of::<FlowEvent>(), size_of::<Event>() + flow);
        assert_eq!(offset_of!(Watch, host), 20);
        assert_eq!(offset_of!(Event, captured), 28);
        const { assert!(EVENT_KINDS <= LOST_EVENTS_ENTRIES) };
    }

    #[test]
    fn the_ring_is_what_the_kernel_takes() {
        assert!(EVENT_RING.is_power_of_two());
        assert!(EVENT_RING.is_multiple_of(65_536), "pages of any architecture");
        assert!(size_of::<Event>() + SNAP_MAX < 32 * 1024, "the smallest per-CPU unit");
    }
}
