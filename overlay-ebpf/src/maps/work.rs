//! Per-CPU areas: the state of the packet in work, and buffers that helpers take by address. A
//! program's stack is 512 bytes for all its functions together.

use core::ops::{Deref, DerefMut};

use overlay_common::{
    Be16, Be32, Ip6, Mac, Reason,
    event::{Event, SNAP_MAX},
    maps::{
        Affinity, AffinityKey, Backend, Conntrack, ConntrackKey, Endpoint, Endpoint6Key, Fragment,
        FragmentKey, Link, Service, TCP_SEEN_ACK, TCP_SEEN_SYN,
    },
    wire::{
        Advertisement, Encapsulation, Encapsulation6, Ethernet, Icmp6Error, Ipv4, Ipv6, PROTO_UDP,
        TcpSegment, TcpSegment6,
    },
};

use crate::maps::{SCRATCH, WORK};

/// In [`Flow::part`]: a whole packet, or its first fragment.
pub const PART_WHOLE: u8 = 0;
/// A later fragment, which has no transport header.
pub const PART_LATER: u8 = 1;
/// An ICMP error that quotes a packet of the other direction.
pub const PART_QUOTED: u8 = 2;

/// A packet's tuple and its TCP flags as `TCP_SEEN_*`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Flow {
    /// The tuple.
    pub key: ConntrackKey,
    /// Bits of `TCP_SEEN_*`; 0 for other protocols.
    pub flags: u32,
    /// Offset of the transport header from the start of the Ethernet header.
    pub transport: u16,
    /// The packet's relation to the flow: one of `PART_*`.
    pub part: u8,
}

impl Flow {
    /// Sets the tuple and the offset `transport` of the transport header, and clears the rest.
    #[inline(always)]
    pub fn set(&mut self, ip: &Ipv4, ports: [Be16; 2], vni: u32, transport: usize) {
        let [sport, dport] = ports;
        self.key = ConntrackKey {
            saddr: ip.saddr(),
            daddr: ip.daddr(),
            sport,
            dport,
            vni,
            proto: ip.protocol,
            scope: [0; 3],
        };
        self.transport = transport as u16;
        self.flags = 0;
        self.part = PART_WHOLE;
    }

    /// Whether it is the first packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (TCP_SEEN_SYN | TCP_SEEN_ACK) == TCP_SEEN_SYN
    }

    /// Whether the flow may change its backend without harm: UDP, or a new connection.
    #[inline(always)]
    pub fn may_be_repicked(&self) -> bool {
        (self.key.proto == PROTO_UDP && self.part != PART_QUOTED) || self.is_syn()
    }
}

/// The state of the packet in work. It lives in a per-CPU map, because a program's stack is 512
/// bytes for all its functions together. Programs of one CPU never nest.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Work {
    /// The packet's tuple before translation.
    pub flow: Flow,
    /// The entry of the packet's flow.
    pub entry: Conntrack,
    /// The backend of the flow, in the client's direction.
    pub backend: Backend,
    /// Input and result of the pick for a new flow.
    pub pick: Pick,
    /// The state of an IPv6 packet.
    pub ipv6: Ipv6Work,
}

/// The part of [`Work`] that picks a backend.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pick {
    /// The service.
    pub service: Service,
    /// The client, for [`super::AFFINITY`].
    pub client: AffinityKey,
    /// The client's entry there.
    pub affinity: Affinity,
    /// 1 if the flow had a backend that is gone.
    pub repicked: u32,
    /// [`overlay_common::maps::VIA_VIP`] if the client sent to a VIP, otherwise 0.
    pub via: u32,
}

/// The IPv6 part of [`Work`]. Addresses of 16 bytes are too large for the stack. Values that
/// functions take by reference would use the stack of the entry point, which IPv4 packets need.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv6Work {
    /// The interface that a container's packet arrived on.
    pub link: Link,
    /// The packet's Ethernet header as sent; later the header for inside the tunnel.
    pub ethernet: Ethernet,
    /// The packet's IPv6 header.
    pub ip: Ipv6,
    /// The key of a look-up.
    pub key: Endpoint6Key,
    /// The result of a look-up.
    pub endpoint: Endpoint,
    /// Counter index of the endpoint that a tunnel packet goes to; 0 while it is not known.
    pub counter: u32,
    /// Destination of a container's packet: one of `AIM_*` of `walk::container6`.
    pub aim: u32,
    /// Result of [`crate::observe::event::keep`] for a container's packet.
    pub kept: i64,
    /// 1 if a tunnel packet may belong to a translated flow, for `tunnel_flow6`.
    pub is_flow: u32,
    /// The VNI in a tunnel packet.
    pub vni: u32,
    /// The node that sent it.
    pub sender: Be32,
    /// Bytes of outer headers in front of the packet.
    pub outer: u32,
    /// Whether the packet is a fragment: one of `*_FRAGMENT`.
    pub fragment: u32,
    /// Identification of the fragments.
    pub id: Be32,
    /// The header of the packet that an ICMPv6 error quotes.
    pub quoted: Ipv6,
    /// Source and destination after translation.
    pub new: [Ip6; 2],
    /// Source address of an answer to the packet.
    pub router: Ip6,
    /// Source MAC of the answer.
    pub router_mac: Mac,
    /// The backends' port of the published port that the client sent to.
    pub target: Be16,
    /// A neighbour solicitation, rewritten in place to the advertisement.
    pub advertisement: Advertisement,
    /// The headers of an ICMPv6 error.
    pub error: Icmp6Error,
}

/// This CPU's work area, for functions that share it. Code reads and writes through the pointer for
/// a moment at a time, because functions that the verifier checks separately find the same area by
/// themselves.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Area(*mut Work);

impl Deref for Area {
    type Target = Work;

    #[inline(always)]
    fn deref(&self) -> &Work {
        // SAFETY: the array entry exists as long as the program and no other run on this CPU
        // overlaps.
        unsafe { &*self.0 }
    }
}

impl DerefMut for Area {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Work {
        // SAFETY: as above.
        unsafe { &mut *self.0 }
    }
}

/// The work area of this CPU.
///
/// # Errors
/// [`Reason::NotConfigured`]. It never happens; the verifier requires the check.
#[inline(always)]
pub fn area() -> Result<Area, Reason> {
    WORK.get_ptr_mut(0).map(Area).ok_or(Reason::NotConfigured)
}

/// The work area of this CPU.
#[inline(always)]
pub fn work() -> Result<&'static mut Work, Reason> {
    // SAFETY: the array entry exists as long as the program and no other run on this CPU overlaps.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work }).ok_or(Reason::NotConfigured)
}

/// Buffers that helpers take by address. They are apart from [`Work`], which the callers still
/// hold.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scratch {
    /// Room for the kernel's `struct bpf_fib_lookup`, 64 bytes, or for its `struct bpf_tunnel_key`.
    pub fib: [u64; 8],
    /// Outer headers to be written to the packet.
    pub headers: Encapsulation,
    /// The key of a fragmented packet.
    pub fragment_key: FragmentKey,
    /// The first bytes of its transport header.
    pub fragment: Fragment,
    /// The tuple of answers to the packet that an ICMP error quotes.
    pub quoted: ConntrackKey,
    /// A flow entry to be written to a map.
    pub entry: Conntrack,
    /// A whole TCP segment to be written to the packet.
    pub segment: TcpSegment,
    /// The same over IPv6.
    pub segment6: TcpSegment6,
    /// Outer headers of an IPv6 underlay to be written to the packet.
    pub headers6: Encapsulation6,
}

/// The scratch area of this CPU. Every use of it ends with the call of the helper that takes it.
#[inline(always)]
pub fn scratch() -> Result<&'static mut Scratch, Reason> {
    // SAFETY: as in `work`.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch }).ok_or(Reason::NotConfigured)
}

/// A record of map `events` while a program fills it.
#[repr(C)]
pub struct Buffer {
    /// Its header.
    pub event: Event,
    /// Bytes of the packet.
    pub data: [u8; SNAP_MAX],
}
