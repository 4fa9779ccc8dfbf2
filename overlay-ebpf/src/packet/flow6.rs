//! The flow of an IPv6 packet: its ports, behind extension headers and in fragments, and the ids of
//! its addresses. An ICMPv6 error belongs to the flow of the answers to the packet that it quotes,
//! as in `packet::related`.
//!
//! There are two steps, because an address outside gets an id only if the packet is for a published
//! port.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be16, Ip6, Reason, UNDERLAY_VNI,
    maps::{FragmentKey, VNI_FLAG_IPV6},
    wire::{
        FragmentHeader6, ICMP6_PARAMETER_PROBLEM, ICMP6_UNREACHABLE, PROTO_ICMPV6, PROTO_SCTP,
        PROTO_TCP, Udp,
    },
};

use crate::{
    maps::{
        addr6_id,
        work::{Ipv6Work, PART_LATER, PART_QUOTED, PART_WHOLE, Work, scratch, work},
    },
    outcome,
    packet::{
        fragment,
        frame::{ETH_LEN, is_gso, load_at, load_into},
        ipv6::{IPV6_LEN, extension_length, extension_unit},
        transport::{SCTP_CHUNK, TCP_FLAGS, has_ports, possible, sctp_flags, tcp_flags},
    },
};

/// Most extension headers; no sender needs so many.
const MOST_EXTENSIONS: usize = 8;
/// Most bytes of extension headers. Translation does not find a transport header behind more of
/// them.
const LONGEST_EXTENSIONS: usize = 512;
/// Length of the header of an ICMPv6 error.
const ICMP6_LEN: usize = 8;

/// In `how` of [`name`]: the source is outside, even if the network has the same address.
pub const SOURCE_OUTSIDE: u32 = 1 << 0;
/// In `how` of [`name`]: an address outside may get a new id.
pub const MAY_BE_NEW: u32 = 1 << 1;

/// In [`Ipv6Work::fragment`]: the packet is whole.
pub const NO_FRAGMENT: u32 = 0;
/// In [`Ipv6Work::fragment`]: the packet is a first fragment.
pub const FIRST_FRAGMENT: u32 = 1;
/// In [`Ipv6Work::fragment`]: the packet is a later fragment.
pub const LATER_FRAGMENT: u32 = 2;

/// Reads protocol, ports, flags and part of the packet whose header, at `offset`, is in
/// `work.ipv6.ip`, into `work.flow`. The ids of the addresses are missing until [`name`], and so
/// are a later fragment's ports.
///
/// # Errors
/// [`Reason::ServiceProtocol`] for a packet without ports, [`Reason::UnrelatedError`] for an ICMPv6
/// error without a flow, [`Reason::Malformed`] for TCP flags that exclude each other and for too
/// many or too long extension headers, [`Reason::Truncated`].
#[inline(always)]
pub fn read(ctx: &TcContext, offset: usize) -> Result<(), Reason> {
    outcome::unpack(read_flow6_packed(ctx.skb.skb, offset as u32)).map(|_| ())
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn read_flow6_packed(skb: *mut __sk_buff, offset: u32) -> i64 {
    // Headers are near the start of the packet. The mask shows that to the verifier in this
    // separate function.
    outcome::pack(read_flow(&TcContext::new(skb), (offset & 0xff) as usize).map(|()| 0))
}

#[inline(always)]
fn read_flow(ctx: &TcContext, offset: usize) -> Result<(), Reason> {
    let Work { flow, ipv6, .. } = work()?;
    let mut at = offset + IPV6_LEN;
    let mut next = ipv6.ip.next_header;
    ipv6.fragment = NO_FRAGMENT;
    flow.flags = 0;
    flow.part = PART_WHOLE;
    flow.key.sport = Be16::ZERO;
    flow.key.dport = Be16::ZERO;
    flow.key.scope = [0; 3];
    for _ in 0..MOST_EXTENSIONS {
        if next == FragmentHeader6::NUMBER {
            let header: FragmentHeader6 = load_at(ctx, at)?;
            ipv6.id = header.id;
            ipv6.fragment = if header.is_later() { LATER_FRAGMENT } else { FIRST_FRAGMENT };
            next = header.next_header;
            at += size_of::<FragmentHeader6>();
            if header.is_later() {
                break;
            }
        } else if let Some(unit) = extension_unit(next) {
            let header: [u8; 2] = load_at(ctx, at)?;
            next = header[0];
            at += extension_length(unit, header[1]);
        } else {
            break;
        }
    }
    if at > offset + IPV6_LEN + LONGEST_EXTENSIONS {
        return Err(Reason::Malformed);
    }
    flow.transport = at as u16;
    flow.key.proto = next;
    if ipv6.fragment == LATER_FRAGMENT {
        flow.part = PART_LATER;
        return if has_ports(next) { Ok(()) } else { Err(Reason::ServiceProtocol) };
    }
    if next == PROTO_ICMPV6 {
        return read_quoted(ctx, offset, at);
    }
    if !has_ports(next) {
        let is_header = extension_unit(next).is_some() || next == FragmentHeader6::NUMBER;
        return Err(if is_header { Reason::Malformed } else { Reason::ServiceProtocol });
    }
    let length = match next {
        PROTO_TCP => 20,
        PROTO_SCTP => SCTP_CHUNK + 4,
        _ => size_of::<Udp>(),
    };
    let payload = usize::from(ipv6.ip.payload_length.get());
    if offset + IPV6_LEN + payload < at + length && !(payload == 0 && is_gso(ctx)) {
        return Err(Reason::Truncated);
    }
    let [source, dest]: [Be16; 2] = load_at(ctx, at)?;
    flow.key.sport = source;
    flow.key.dport = dest;
    flow.flags = match next {
        PROTO_TCP => possible(tcp_flags(load_at(ctx, at + TCP_FLAGS)?))?,
        PROTO_SCTP => sctp_flags(load_at(ctx, at + SCTP_CHUNK)?),
        _ => 0,
    };
    Ok(())
}

/// The flow of an ICMPv6 error directly behind its IPv6 header: that of the answers to the quoted
/// packet.
#[inline(always)]
fn read_quoted(ctx: &TcContext, offset: usize, at: usize) -> Result<(), Reason> {
    let Work { flow, ipv6, .. } = work()?;
    let kind: u8 = load_at(ctx, at)?;
    let quoted = at + ICMP6_LEN;
    let transport = quoted + IPV6_LEN;
    let is_error = matches!(kind, ICMP6_UNREACHABLE..=ICMP6_PARAMETER_PROBLEM);
    let end = offset + IPV6_LEN + usize::from(ipv6.ip.payload_length.get());
    let is_one = is_error
        && at == offset + IPV6_LEN
        && ipv6.fragment == NO_FRAGMENT
        && end >= transport + size_of::<Udp>();
    if !is_one {
        return Err(Reason::ServiceProtocol);
    }
    load_into(ctx, quoted, &mut ipv6.quoted)?;
    let [source, dest]: [Be16; 2] = load_at(ctx, transport)?;
    // The error goes to the source of the quoted packet.
    let is_known = ipv6.quoted.version_class_flow[0] >> 4 == 6
        && ipv6.quoted.src == ipv6.ip.dst
        && has_ports(ipv6.quoted.next_header);
    if !is_known {
        return Err(Reason::UnrelatedError);
    }
    flow.key.proto = ipv6.quoted.next_header;
    flow.key.sport = dest;
    flow.key.dport = source;
    flow.transport = transport as u16;
    flow.part = PART_QUOTED;
    Ok(())
}

/// Fills in the ids of the addresses that [`read`] has read, on network `vni`, and the ports of a
/// later fragment. `how` has bits of [`SOURCE_OUTSIDE`] and [`MAY_BE_NEW`]. Returns `false` if an
/// address has no id: then there is no such flow.
///
/// # Errors
/// [`Reason::Fragment`] for a later fragment without its first one; [`Reason::Truncated`].
#[inline(always)]
pub fn name(ctx: &TcContext, vni: u32, how: u32) -> Result<bool, Reason> {
    outcome::unpack(name_flow6_packed(ctx.skb.skb, vni, how)).map(|named| named != 0)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn name_flow6_packed(skb: *mut __sk_buff, vni: u32, how: u32) -> i64 {
    outcome::pack(name_flow(&TcContext::new(skb), vni, how).map(u32::from))
}

#[inline(always)]
fn name_flow(ctx: &TcContext, vni: u32, how: u32) -> Result<bool, Reason> {
    let Work { flow, ipv6, .. } = work()?;
    let Ipv6Work { ip, quoted, key, fragment: part, id, .. } = ipv6;
    let (source, dest): (&Ip6, &Ip6) =
        if flow.part == PART_QUOTED { (&quoted.dst, &quoted.src) } else { (&ip.src, &ip.dst) };
    let may_be_new = how & MAY_BE_NEW != 0;
    flow.key.vni = vni | VNI_FLAG_IPV6;
    flow.key.saddr = if how & SOURCE_OUTSIDE != 0 {
        addr6_id::outside(source, may_be_new)
    } else {
        addr6_id::of(vni, source, may_be_new, key)
    };
    flow.key.daddr = addr6_id::of(vni, dest, may_be_new, key);
    if flow.key.saddr == addr6_id::NONE || flow.key.daddr == addr6_id::NONE {
        return Ok(false);
    }
    if *part == NO_FRAGMENT {
        return Ok(true);
    }
    let packet = FragmentKey {
        saddr: flow.key.saddr,
        daddr: flow.key.daddr,
        vni: flow.key.vni,
        id: *id,
        proto: flow.key.proto,
        pad: [0; 3],
    };
    let transport = usize::from(flow.transport);
    fragment::keep_or_find(ctx, &packet, transport, *part == LATER_FRAGMENT)?;
    let Udp { source, dest, .. } = scratch()?.fragment.head;
    flow.key.sport = source;
    flow.key.dport = dest;
    Ok(true)
}

/// Both steps, for a packet of network `vni`. If it has a flow, its addresses have ids already.
///
/// # Errors
/// Those of [`read`] and [`name`].
#[inline(always)]
pub fn find(ctx: &TcContext, offset: usize, vni: u32) -> Result<bool, Reason> {
    read(ctx, offset)?;
    name(ctx, vni, 0)
}

/// The VNI of packets to or from the host itself.
pub const HOST: u32 = UNDERLAY_VNI;

const _: () = assert!(ETH_LEN + 2 * IPV6_LEN + ICMP6_LEN < 0xff);

/// Largest offset of a transport header from the start of the frame, behind the longest outer
/// headers: in the quote of an ICMPv6 error, or behind extension headers.
pub const FARTHEST: usize = 70 + ETH_LEN + 2 * IPV6_LEN + ICMP6_LEN + LONGEST_EXTENSIONS;
