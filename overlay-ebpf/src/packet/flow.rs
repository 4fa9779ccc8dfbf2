//! The flow of an IPv4 packet.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Reason,
    wire::{Ipv4, PROTO_SCTP, PROTO_TCP},
};

use crate::{
    maps::work::{Flow, PART_LATER},
    packet::{
        fragment,
        frame::{load, load_at},
        ipv4::{IPV4_LEN, holds_transport, is_icmp},
        related,
        transport::{SCTP_CHUNK, TCP_FLAGS, has_ports, possible, sctp_flags, tcp_flags},
    },
};

/// Fills `out` with the flow of a packet with its IPv4 header at `offset`, on network `vni`. An
/// ICMP error belongs to the flow of the answers to the packet that it quotes.
///
/// # Errors
/// [`Reason::UnrelatedError`] for an ICMP error without a flow. [`Reason::Malformed`] for TCP flags
/// that exclude each other. [`Reason::ServiceProtocol`] for protocols other than TCP, UDP and SCTP.
/// [`Reason::Fragment`] for a later fragment without its first one. [`Reason::Truncated`] if the
/// frame or the packet's own length ends before the ports. In the latter case Ethernet's padding
/// would be read as ports.
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

#[inline(always)]
fn load_ports(
    ctx: &TcContext,
    ip: &Ipv4,
    offset: usize,
    transport: usize,
) -> Result<[Be16; 2], Reason> {
    if ip.version_ihl == 0x45 { load(ctx, offset + IPV4_LEN) } else { load_at(ctx, transport) }
}
