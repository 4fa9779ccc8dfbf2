//! Reading and writing packets, and what a translated flow needs to know of one.

pub mod ecn;
pub mod flow6;
pub mod fragment;
pub mod ipv6;
pub mod related;

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_F_INVALIDATE_HASH, helpers::bpf_skb_load_bytes, programs::TcContext};
use network_types::tcp::TcpHdr;
use overlay_common::{
    Be16, Plain, Reason,
    maps::{ConntrackKey, TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_RST, TCP_SEEN_SYN},
    wire::{Ethernet, Ipv4, Ipv6, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, Udp},
};

/// Length of an Ethernet header.
pub const ETH_LEN: usize = size_of::<Ethernet>();
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = size_of::<Ipv4>();
/// Offset of the flags byte in a TCP header (RFC 9293, section 3.1).
pub const TCP_FLAGS: usize = offset_of!(TcpHdr, window) - 1;

/// Offset of the type of the first chunk in an SCTP packet (RFC 9260, section 3).
pub const SCTP_CHUNK: usize = 12;

/// `__sk_buff::pkt_type`: for this host.
const PACKET_HOST: u32 = 0;

/// Sees to it that the first `length` bytes can be read directly, as far as the packet has them.
#[inline(always)]
pub fn pull(ctx: &TcContext, length: u32) {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    // A packet shorter than `length` is left as it is: `load` finds out.
    if linear < length && linear < ctx.len() {
        let _ = ctx.pull_data(if ctx.len() < length { ctx.len() } else { length });
    }
}

/// Reads a header at `offset` bytes from the start of the Ethernet header.
#[inline(always)]
pub fn load<T: Plain>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return Err(Reason::Truncated);
    }
    Ok(read(start as *const T))
}

/// Reads a header in the packet. The kernel puts frames at even addresses and all our headers are
/// of even length, so nothing is read byte by byte, as BPF's compiler does for what may be anywhere.
#[inline(always)]
pub fn read<T: Plain>(header: *const T) -> T {
    const { assert!(align_of::<T>() <= 2, "headers are at even addresses, no more") };
    // SAFETY: the callers checked the bounds, any bit pattern is a valid `T`, and see above.
    unsafe { header.read() }
}

/// As [`load`] for an offset that is not a constant: by copy, without direct access.
#[inline(always)]
pub fn load_at<T: Plain>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    ctx.load(offset).map_err(|_| Reason::Truncated)
}

/// As [`load_at`], into memory that is not the stack's: a header read as a value is copied byte by
/// byte, because nothing is known of its alignment.
#[inline(always)]
pub fn load_into<T: Plain>(ctx: &TcContext, offset: usize, out: &mut T) -> Result<(), Reason> {
    let (skb, length) = (ctx.skb.skb.cast(), size_of::<T>() as u32);
    // SAFETY: the memory is a whole `T`, for which any bit pattern is valid.
    match unsafe { bpf_skb_load_bytes(skb, offset as u32, (&raw mut *out).cast(), length) } {
        0 => Ok(()),
        _ => Err(Reason::Truncated),
    }
}

/// Writes a header, leaving checksums to the caller.
#[inline(always)]
pub fn store<T: Plain>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), Reason> {
    ctx.skb.store(offset, value, 0).map_err(|_| Reason::RewriteRefused)
}

/// As [`store`], and forgets the flow hash of the old headers.
#[inline(always)]
pub fn store_rehash<T: Plain>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), Reason> {
    let flags = u64::from(BPF_F_INVALIDATE_HASH);
    ctx.skb.store(offset, value, flags).map_err(|_| Reason::RewriteRefused)
}

/// Index of the interface the packet came in by.
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole run of the program.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Whether a VLAN tag waits outside the packet data.
#[inline(always)]
pub fn has_vlan_tag(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Length of the VLAN tag that a packet has or will have on the wire, in bytes.
#[inline(always)]
pub fn vlan_tag_length(ctx: &TcContext) -> u32 {
    if has_vlan_tag(ctx) { 4 } else { 0 }
}

/// For ways on which VLAN tags have no meaning.
///
/// # Errors
/// [`Reason::UnsupportedProtocol`] when the packet has one.
#[inline(always)]
pub fn refuse_vlan_tag(ctx: &TcContext) -> Result<(), Reason> {
    if has_vlan_tag(ctx) { Err(Reason::UnsupportedProtocol) } else { Ok(()) }
}

/// Whether the packet is an aggregate of segments.
#[inline(always)]
pub fn is_gso(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

/// Length of the longest packet that the packet, with its IPv4 or IPv6 header at `offset`, is on the
/// wire: its own, or that of an aggregate's segments.
#[inline(always)]
pub fn longest(ctx: &TcContext, offset: usize) -> u32 {
    // SAFETY: as above.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return ctx.len() - offset as u32;
    }
    // What cannot be read is not known to be too long.
    segment + headers_length(ctx, offset).unwrap_or(0)
}

/// Length of the IPv4 and the transport header that every segment of an aggregate has.
#[inline(always)]
fn headers_length(ctx: &TcContext, offset: usize) -> Result<u32, Reason> {
    let ip: Ipv4 = load(ctx, offset)?;
    let (header, protocol) = if ip.version_ihl >> 4 == 6 {
        (size_of::<Ipv6>(), load(ctx, offset + offset_of!(Ipv6, next_header))?)
    } else {
        (usize::from(ip.version_ihl & 0xf) * 4, ip.protocol)
    };
    let transport = match protocol {
        PROTO_TCP => {
            let data_offset: u8 = load_at(ctx, offset + header + TCP_FLAGS - 1)?;
            usize::from(data_offset >> 4) * 4
        }
        PROTO_UDP => size_of::<Udp>(),
        _ => 0,
    };
    Ok((header + transport) as u32)
}

/// Marks the packet as one for the host that receives it: a container's frame carries the MAC of
/// another container, so the kernel took it for somebody else's.
#[inline(always)]
pub fn mark_for_host(ctx: &TcContext) {
    // SAFETY: as above.
    if unsafe { (*ctx.skb.skb).pkt_type } != PACKET_HOST {
        let _ = ctx.change_type(PACKET_HOST);
    }
}

/// Checks what every IPv4 header must satisfy. `available` is the length of the packet from this
/// header on; aggregates over 64 KiB have a total length of 0 (BIG TCP, Linux 6.3).
#[inline(always)]
pub fn check_ipv4(ip: &Ipv4, available: u32, gso: bool) -> Result<(), Reason> {
    let header = u32::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || header < IPV4_LEN as u32 {
        return Err(Reason::Malformed);
    }
    let total = u32::from(ip.total_length.get());
    if total == 0 && gso {
        return Ok(());
    }
    if total < header {
        return Err(Reason::Malformed);
    }
    if total > available && !gso {
        return Err(Reason::Truncated);
    }
    Ok(())
}

/// Whether a destination is multicast, broadcast or a class E address.
#[inline(always)]
pub fn is_group_address(ip: &Ipv4) -> bool {
    ip.dst[0] >= 224
}

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
    /// Offset of the transport header from the start of the Ethernet header.
    pub transport: u16,
    /// Bits of `TCP_SEEN_*`; 0 for other protocols.
    pub flags: u8,
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

/// The type of a packet's first SCTP chunk (RFC 9260, section 3.2) as `TCP_SEEN_*`: associations live by
/// the same states.
#[inline(always)]
pub fn sctp_flags(chunk: u8) -> u8 {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match chunk {
        INIT => TCP_SEEN_SYN,
        INIT_ACK => TCP_SEEN_SYN | TCP_SEEN_ACK,
        ABORT => TCP_SEEN_RST,
        SHUTDOWN_COMPLETE => TCP_SEEN_FIN | TCP_SEEN_ACK,
        _ => TCP_SEEN_ACK,
    }
}

/// `flags`, unless no TCP sends them together: what opens a connection does not end it.
///
/// # Errors
/// [`Reason::Malformed`].
#[inline(always)]
pub fn possible(flags: u8) -> Result<u8, Reason> {
    let ends = flags & (TCP_SEEN_FIN | TCP_SEEN_RST) != 0;
    if flags & TCP_SEEN_SYN != 0 && ends { Err(Reason::Malformed) } else { Ok(flags) }
}

/// The flags byte of a TCP header as `TCP_SEEN_*`.
#[inline(always)]
pub fn tcp_flags(byte: u8) -> u8 {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    let mut flags = 0;
    if byte & SYN != 0 {
        flags |= TCP_SEEN_SYN;
    }
    if byte & ACK != 0 {
        flags |= TCP_SEEN_ACK;
    }
    if byte & FIN != 0 {
        flags |= TCP_SEEN_FIN;
    }
    if byte & RST != 0 {
        flags |= TCP_SEEN_RST;
    }
    flags
}

/// Fills `out` with the flow of a packet whose IPv4 header is at `offset`, on network `vni`. An ICMP error is
/// of the flow that answers what it quotes.
///
/// # Errors
/// [`Reason::UnrelatedError`] when it does not say which. [`Reason::Malformed`] for TCP flags that exclude
/// each other. [`Reason::ServiceProtocol`] when it is none of TCP, UDP and SCTP, [`Reason::Fragment`] when it is a later
/// fragment of a packet whose first one was not seen, [`Reason::Truncated`] when it ends too early: the
/// frame, or by its own length the packet, behind which Ethernet's padding would be taken for ports.
#[inline(always)]
pub fn flow(
    ctx: &TcContext,
    ip: &Ipv4,
    offset: usize,
    vni: u32,
    out: &mut Flow,
) -> Result<(), Reason> {
    if is_icmp(ip) {
        return related::flow(ctx, offset, vni, out);
    }
    if !has_ports(ip.protocol) {
        return Err(Reason::ServiceProtocol);
    }
    let transport = offset + usize::from(ip.version_ihl & 0xf) * 4;
    if ip.is_later_fragment() {
        let head = fragment::head(ctx, offset, vni)?;
        out.set(ip, [head.source, head.dest], vni, transport);
        out.part = PART_LATER;
        return Ok(());
    }
    if !holds_transport(ip) {
        return Err(Reason::Truncated);
    }
    if ip.is_fragment() {
        fragment::head(ctx, offset, vni)?;
    }
    let ports: [Be16; 2] = load_ports(ctx, ip, offset, transport)?;
    let flags = match ip.protocol {
        PROTO_TCP => {
            let byte: u8 = if transport == offset + IPV4_LEN {
                load(ctx, offset + IPV4_LEN + TCP_FLAGS)?
            } else {
                load_at(ctx, transport + TCP_FLAGS)?
            };
            possible(tcp_flags(byte))?
        }
        PROTO_SCTP => sctp_flags(load_at(ctx, transport + SCTP_CHUNK)?),
        _ => 0,
    };
    out.set(ip, ports, vni, transport);
    out.flags = flags;
    Ok(())
}

/// Whether the protocol has ports, at the start of its header: TCP, UDP and SCTP.
#[inline(always)]
pub fn has_ports(protocol: u8) -> bool {
    protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP
}

/// Whether a packet with ports is long enough for its transport header, and of SCTP for its first chunk's.
/// [`check_ipv4`] lets only aggregates have a total length of 0.
#[inline(always)]
pub fn holds_transport(ip: &Ipv4) -> bool {
    let total = usize::from(ip.total_length.get());
    let transport = match ip.protocol {
        PROTO_TCP => size_of::<TcpHdr>(),
        PROTO_SCTP => SCTP_CHUNK + 4,
        _ => size_of::<Udp>(),
    };
    total == 0 || total >= usize::from(ip.version_ihl & 0xf) * 4 + transport
}

#[inline(always)]
fn load_ports(
    ctx: &TcContext,
    ip: &Ipv4,
    offset: usize,
    transport: usize,
) -> Result<[Be16; 2], Reason> {
    if ip.version_ihl == 0x45 { load(ctx, offset + IPV4_LEN) } else { load_at(ctx, transport) }
}

/// Whether the protocol is one that an echo can be asked with.
#[inline(always)]
pub fn is_icmp(ip: &Ipv4) -> bool {
    ip.protocol == PROTO_ICMP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(total: u16) -> Ipv4 {
        Ipv4 { version_ihl: 0x45, total_length: Be16::new(total), ..Ipv4::default() }
    }

    #[test]
    fn an_ipv4_header_is_checked_against_the_packet() {
        assert_eq!(check_ipv4(&header(40), 40, false), Ok(()));
        assert_eq!(check_ipv4(&header(40), 60, false), Ok(()), "Ethernet pads short packets");
        assert_eq!(check_ipv4(&header(41), 40, false), Err(Reason::Truncated));
        assert_eq!(check_ipv4(&header(19), 40, false), Err(Reason::Malformed));
        let version_6 = Ipv4 { version_ihl: 0x65, ..header(40) };
        assert_eq!(check_ipv4(&version_6, 40, false), Err(Reason::Malformed));
        let short_header = Ipv4 { version_ihl: 0x44, ..header(40) };
        assert_eq!(check_ipv4(&short_header, 40, false), Err(Reason::Malformed));
        let options = Ipv4 { version_ihl: 0x4f, ..header(59) };
        assert_eq!(check_ipv4(&options, 100, false), Err(Reason::Malformed));
    }

    #[test]
    fn aggregates_may_have_a_total_length_of_zero() {
        assert_eq!(check_ipv4(&header(0), 80_000, true), Ok(()));
        assert_eq!(check_ipv4(&header(0), 80_000, false), Err(Reason::Malformed));
    }

    #[test]
    fn a_packet_must_hold_its_transport_header() {
        for (protocol, total) in [(PROTO_TCP, 40), (PROTO_UDP, 28), (PROTO_SCTP, 36)] {
            assert!(holds_transport(&Ipv4 { protocol, ..header(total) }));
            assert!(!holds_transport(&Ipv4 { protocol, ..header(total - 1) }));
            let options = Ipv4 { protocol, version_ihl: 0x46, ..header(total) };
            assert!(!holds_transport(&options));
        }
    }

    #[test]
    fn an_association_opens_and_ends_as_a_connection_does() {
        assert_eq!(sctp_flags(1), TCP_SEEN_SYN);
        assert_eq!(sctp_flags(2), TCP_SEEN_SYN | TCP_SEEN_ACK);
        assert_eq!(sctp_flags(6), TCP_SEEN_RST);
        assert_eq!(sctp_flags(14), TCP_SEEN_FIN | TCP_SEEN_ACK);
        assert_eq!(sctp_flags(0), TCP_SEEN_ACK, "data");
        assert_eq!(sctp_flags(4), TCP_SEEN_ACK, "heartbeat");
    }

    #[test]
    fn tcp_flags_are_those_of_rfc_9293() {
        assert_eq!(tcp_flags(0x02), TCP_SEEN_SYN);
        assert_eq!(tcp_flags(0x12), TCP_SEEN_SYN | TCP_SEEN_ACK);
        assert_eq!(tcp_flags(0x11), TCP_SEEN_FIN | TCP_SEEN_ACK);
        assert_eq!(tcp_flags(0x04), TCP_SEEN_RST);
        assert_eq!(tcp_flags(0xe8), 0, "PSH, URG, ECE and CWR say nothing of the state");
    }
}
