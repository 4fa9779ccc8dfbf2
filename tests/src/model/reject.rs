//! "A service without a backend rejects at once": TCP gets a reset (RFC 9293, section 3.10.7.1),
//! UDP and SCTP an ICMP error, from the frontend. A packet that must not be answered is dropped.

use overlay_common::Reason;

use super::{
    balance::Balanced,
    bytes::{Ethernet, TCP, bytes, put},
    icmp::{self, Router, is_host, reply, sealed},
    packet::{Flow, Ip, Part},
    walk::{End, Outcome, Walk},
};

/// The packet to reject.
#[derive(Clone, Copy)]
pub struct Rejected {
    proto: u8,
    part: Part,
    transport: usize,
}

impl From<&Flow> for Rejected {
    fn from(flow: &Flow) -> Self {
        Self { proto: flow.key.proto, part: flow.part, transport: flow.transport }
    }
}

impl Rejected {
    /// A TCP packet to reject, without a lookup of its flow.
    pub fn tcp(part: Part, transport: usize) -> Self {
        Self { proto: TCP, part, transport }
    }
}

/// Rejects a packet.
pub fn reject(
    walk: &mut Walk<'_>,
    ip: &Ip,
    of: impl Into<Rejected>,
    balanced: &Balanced,
) -> Outcome {
    let of = of.into();
    if !matches!(balanced, Balanced::Lost) {
        return answer(walk, ip, of);
    }
    // "A connection whose backend is stale is reset". Nothing else is sent.
    let told = of.proto == TCP && of.part != Part::Quoted && answer(walk, ip, of).is_ok();
    let gone = End::Sent(Reason::BackendGoneAnswered);
    if told { Ok(gone) } else { Err(Reason::BackendGone) }
}

fn answer(walk: &mut Walk<'_>, ip: &Ip, of: Rejected) -> Outcome {
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    if ethernet.dst.is_group() || !is_host(ip.src) || of.part == Part::Later {
        return Err(Reason::NoBackend);
    }
    let frontend = Router { ip: ip.dst, mac: ethernet.dst };
    if of.proto != TCP {
        return icmp::unreachable(walk, frontend, of.proto);
    }
    // Any bytes may follow options or extension headers.
    if !ip.is_plain() || of.transport != ip.payload() {
        return Err(Reason::NoBackend);
    }
    // The length in an aggregate's header may exceed the packet.
    let segment: [u8; 20] = bytes(&walk.frame, of.transport).ok_or(Reason::Truncated)?;
    let mut tcp = reset_of(&segment, ip.total.saturating_sub(ip.header))?;
    let ends = [ip.dst, ip.src];
    let sum = sealed(ends, TCP, &tcp);
    put(&mut tcp, 16, &sum.to_be_bytes());
    reply(walk, frontend.mac, (ends, TCP, 0), &tcp)?;
    Ok(End::Sent(Reason::NoBackendAnswered))
}

/// The header that answers a segment of so many bytes, without its checksum.
fn reset_of(segment: &[u8; 20], length: usize) -> Result<Vec<u8>, Reason> {
    let flag = |bit: u8| segment[13] >> bit & 1 == 1;
    let (fin, syn, rst, ack) = (flag(0), flag(1), flag(2), flag(4));
    if rst {
        return Err(Reason::NoBackend);
    }
    let word = |at| u32::from_be_bytes(bytes(segment, at).expect("a whole header"));
    let (sequence, acknowledges, flags) = if ack {
        (word(8), 0, 0b0000_0100_u8)
    } else {
        let header = usize::from(segment[12] >> 4) * 4;
        let data = length.checked_sub(header).filter(|_| header >= 20);
        let length = data.ok_or(Reason::NoBackend)? as u32 + u32::from(syn) + u32::from(fin);
        (0, word(4).wrapping_add(length), 0b0001_0100)
    };
    let mut tcp = [&segment[2..4], &segment[..2]].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledges.to_be_bytes());
    tcp.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    Ok(tcp)
}
