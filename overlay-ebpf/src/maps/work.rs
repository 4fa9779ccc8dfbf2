//! Per-CPU areas: what a program remembers of the packet that it works on, and what helpers are handed
//! by address. A program's stack is 512 bytes for all its functions together.

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

/// In [`Flow::part`]: a packet, or the first fragment of one.
pub const PART_WHOLE: u8 = 0;
/// A later fragment, which has no transport header.
pub const PART_LATER: u8 = 1;
/// An ICMP error that quotes a packet of the other direction.
pub const PART_QUOTED: u8 = 2;

/// A packet's tuple and the TCP flags it carries as `TCP_SEEN_*`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Flow {
    /// The tuple.
    pub key: ConntrackKey,
    /// Bits of `TCP_SEEN_*`; 0 for other protocols.
    pub flags: u32,
    /// Offset of the transport header from the start of the Ethernet header.
    pub transport: u16,
    /// What of the flow the packet is: one of `PART_*`.
    pub part: u8,
}

impl Flow {
    /// Sets all but the flags, which it clears. `transport` is the transport header's offset.
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

    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (TCP_SEEN_SYN | TCP_SEEN_ACK) == TCP_SEEN_SYN
    }

    /// Whether nothing can be lost by giving it another backend: UDP, or a new connection.
    #[inline(always)]
    pub fn may_be_repicked(&self) -> bool {
        (self.key.proto == PROTO_UDP && self.part != PART_QUOTED) || self.is_syn()
    }
}

/// What a program remembers of the packet it works on. It lives in a per-CPU map, because a
/// program's stack is 512 bytes for all its functions together; programs of one CPU never nest.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Work {
    /// The packet's tuple before translation.
    pub flow: Flow,
    /// The entry of its flow.
    pub entry: Conntrack,
    /// The backend of its flow, in the client's direction.
    pub backend: Backend,
    /// What a new flow's backend is picked by.
    pub pick: Pick,
    /// What is remembered of an IPv6 packet.
    pub ipv6: Ipv6Work,
}

/// The part of [`Work`] in which a backend is picked.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pick {
    /// The service.
    pub service: Service,
    /// The client, for [`super::AFFINITY`].
    pub client: AffinityKey,
    /// What it keeps.
    pub affinity: Affinity,
    /// 1 when the flow had a backend that is gone.
    pub repicked: u32,
    /// [`overlay_common::maps::VIA_VIP`] when the client asks a VIP, otherwise 0.
    pub via: u32,
}

/// The IPv6 part of [`Work`]: addresses of 16 bytes are too large for the stack, and what functions
/// are given by reference would take room in the entry point's, which IPv4 packets need.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv6Work {
    /// The interface that a container's packet came in by.
    pub link: Link,
    /// The packet's Ethernet header as it was sent, then the one for inside the tunnel.
    pub ethernet: Ethernet,
    /// The packet's header.
    pub ip: Ipv6,
    /// What is looked up.
    pub key: Endpoint6Key,
    /// What was found.
    pub endpoint: Endpoint,
    /// Counter slot of the endpoint that a tunnel packet is for; 0 while it is not known.
    pub slot: u32,
    /// Where a container's packet goes: one of `AIM_*` of `walk::container6`.
    pub aim: u32,
    /// What [`crate::observe::event::keep`] returned for a container's packet.
    pub kept: i64,
    /// 1 when a tunnel packet may be of a translated flow, for `tunnel_flow6`.
    pub is_flow: u32,
    /// Network that a tunnel packet claims.
    pub vni: u32,
    /// Node that it comes from.
    pub sender: Be32,
    /// Bytes of outer headers in front of it.
    pub outer: u32,
    /// Whether the packet is in fragments: one of `*_FRAGMENT`.
    pub fragment: u32,
    /// Identification of its fragments.
    pub id: Be32,
    /// The header of the packet that an ICMPv6 error quotes.
    pub quoted: Ipv6,
    /// Source and destination of a translated packet.
    pub new: [Ip6; 2],
    /// Who an answer to the packet comes from.
    pub router: Ip6,
    /// Its MAC.
    pub router_mac: Mac,
    /// The backends' port of a published one that is asked.
    pub target: Be16,
    /// A neighbour solicitation, and the advertisement made of it.
    pub advertisement: Advertisement,
    /// The headers of an answer to what does not fit.
    pub error: Icmp6Error,
}

/// The work area of this CPU, for functions that share it: a pointer that is read and written through for a
/// moment at a time, because functions of the verifier's own find the same area for themselves.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Area(*mut Work);

impl Deref for Area {
    type Target = Work;

    #[inline(always)]
    fn deref(&self) -> &Work {
        // SAFETY: the slot exists as long as the program and no other run on this CPU overlaps.
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
/// [`Reason::NotConfigured`], which the verifier asks for and which does not happen.
#[inline(always)]
pub fn area() -> Result<Area, Reason> {
    WORK.get_ptr_mut(0).map(Area).ok_or(Reason::NotConfigured)
}

/// The work area of this CPU.
#[inline(always)]
pub fn work() -> Result<&'static mut Work, Reason> {
    // SAFETY: the slot exists as long as the program and no other run on this CPU overlaps.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work }).ok_or(Reason::NotConfigured)
}

/// What helpers are handed by address, apart from [`Work`], which their callers still hold.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scratch {
    /// Room for the kernel's `struct bpf_fib_lookup`, 64 bytes, or for its `struct bpf_tunnel_key`.
    pub fib: [u64; 8],
    /// Headers on their way into the packet.
    pub headers: Encapsulation,
    /// A fragment's packet.
    pub fragment_key: FragmentKey,
    /// How the transport header of that begins.
    pub fragment: Fragment,
    /// The tuple of answers to a packet that an ICMP error quotes.
    pub quoted: ConntrackKey,
    /// An entry on its way into a map.
    pub entry: Conntrack,
    /// A whole packet on its way.
    pub segment: TcpSegment,
    /// The same of IPv6.
    pub segment6: TcpSegment6,
    /// Headers of an IPv6 underlay on their way into the packet.
    pub headers6: Encapsulation6,
}

/// The scratch area of this CPU. Every use of it ends with the call of the helper it is filled for.
#[inline(always)]
pub fn scratch() -> Result<&'static mut Scratch, Reason> {
    // SAFETY: as in `work`.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch }).ok_or(Reason::NotConfigured)
}

/// A record that is being put together.
#[repr(C)]
pub struct Buffer {
    /// Its beginning.
    pub event: Event,
    /// Bytes of the packet.
    pub data: [u8; SNAP_MAX],
}
