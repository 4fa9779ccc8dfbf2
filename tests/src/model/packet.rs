//! A packet as a value: its IP header, its part of a flow, and the bytes that a translation covers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::Reason;

use super::{
    agent::Naming,
    bytes::{ICMP, SCTP, TCP, UDP, bytes, half},
    state::{FlowKey, Fragment, FragmentKey, Marks},
    walk::Walk,
};

/// Next-header number of ICMPv6.
pub const ICMPV6: u8 = 58;
const SECOND: u64 = 1_000_000_000;

/// The fields of an IP header (RFC 791; RFC 8200, section 3) that the datapath uses.
#[derive(Clone, Copy)]
pub struct Ip {
    /// Offset of the header in the frame.
    pub at: usize,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    version: u8,
    /// Length of the header in bytes, without extension headers.
    pub header: usize,
    /// Length of the packet in bytes.
    pub total: usize,
    /// The length field is zero, as that of an aggregate over 64 KiB.
    pub is_huge: bool,
    /// Protocol, or what follows the IPv6 header.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// ECN field (RFC 3168).
    pub ecn: u8,
    id: u32,
    /// More fragments follow, by the IPv4 header.
    pub more: bool,
    /// The fragment's offset is not zero, by the IPv4 header.
    pub later: bool,
}

impl Ip {
    /// The header at an offset, of the family in the Ethernet header.
    pub fn at(frame: &[u8], at: usize, ipv6: bool) -> Option<Self> {
        if ipv6 { Self::v6(frame, at) } else { Self::v4(frame, at) }
    }

    fn v4(frame: &[u8], at: usize) -> Option<Self> {
        let header: [u8; 20] = bytes(frame, at)?;
        let address = |at| bytes::<4>(&header, at).map(|octets| Ipv4Addr::from(octets).into());
        let (fragment, total) = (half(&header, 6)?, usize::from(half(&header, 2)?));
        Some(Self {
            at,
            src: address(12)?,
            dst: address(16)?,
            version: header[0] >> 4,
            header: usize::from(header[0] & 15) * 4,
            total,
            is_huge: total == 0,
            protocol: header[9],
            ttl: header[8],
            ecn: header[1] & 3,
            id: half(&header, 4)?.into(),
            more: fragment & 0x2000 != 0,
            later: fragment & 0x1fff != 0,
        })
    }

    fn v6(frame: &[u8], at: usize) -> Option<Self> {
        let header: [u8; 40] = bytes(frame, at)?;
        let address = |at| bytes::<16>(&header, at).map(|octets| Ipv6Addr::from(octets).into());
        let payload = usize::from(half(&header, 4)?);
        Some(Self {
            at,
            src: address(8)?,
            dst: address(24)?,
            version: header[0] >> 4,
            header: 40,
            total: 40 + payload,
            is_huge: payload == 0,
            protocol: header[6],
            ttl: header[7],
            ecn: header[1] >> 4 & 3,
            id: 0,
            more: false,
            later: false,
        })
    }

    /// The family.
    pub fn is_ipv6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// The right version and no options.
    pub fn is_plain(&self) -> bool {
        self.is_ipv6() || (self.version == 4 && self.header == 20)
    }

    /// Any fragment, as the IPv4 header says.
    pub fn is_fragment(&self) -> bool {
        self.more || self.later
    }

    /// Offset of what follows the header.
    pub fn payload(&self) -> usize {
        self.at + self.header
    }

    /// Whether the packet carries the ICMP of its family.
    pub fn is_icmp(&self) -> bool {
        self.protocol == if self.is_ipv6() { ICMPV6 } else { ICMP }
    }

    /// Checks that the header is possible and that the frame is as long as the header says. The
    /// length field of an aggregate describes none of its segments.
    pub fn check(&self, walk: &Walk<'_>) -> Result<(), Reason> {
        let is_aggregate = walk.segment != 0;
        let is_possible = match self.is_ipv6() {
            true => self.version == 6,
            false => {
                let is_short = self.total < self.header && !(is_aggregate && self.is_huge);
                self.version == 4 && self.header >= 20 && !is_short
            }
        };
        if !is_possible {
            return Err(Reason::Malformed);
        }
        if self.at + self.total > walk.frame.len() && !is_aggregate {
            return Err(Reason::Truncated);
        }
        Ok(())
    }
}

/// The part of a flow that a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A packet, or the first fragment of one.
    Whole,
    /// A later fragment.
    Later,
    /// An ICMP error that quotes a packet of the other direction.
    Quoted,
}

/// The flow of a packet, as its headers describe it.
#[derive(Clone, Copy)]
pub struct Said {
    /// Source and destination of the flow.
    pub ends: [IpAddr; 2],
    /// The protocol of the flow.
    pub proto: u8,
    /// Source and destination port; a later fragment has none.
    pub ports: [u16; 2],
    /// The part of the flow that it is.
    pub part: Part,
    /// Offset of the transport header.
    pub transport: usize,
    seen: Marks,
    /// Identification, where it is a fragment.
    fragment: Option<u32>,
    /// The fault behind the ports.
    pub fault: Option<Reason>,
}

/// A packet's tuple, its part of the flow, the offset of its transport header, and its TCP flags.
#[derive(Clone, Copy)]
pub struct Flow {
    /// The tuple on arrival.
    pub key: FlowKey,
    /// Offset of the transport header.
    pub transport: usize,
    /// The state of the connection that the packet shows.
    pub seen: Marks,
    /// The part of the flow that the packet is.
    pub part: Part,
}

/// The transport header behind the IP header and its extension headers.
struct Upper {
    proto: u8,
    at: usize,
    fragment: Option<u32>,
    later: bool,
}

/// Extension headers that are skipped, without the fragment header (RFC 8200, section 4; RFC 4302;
/// RFC 6275; RFC 7401; RFC 5533).
const EXTENSIONS: [u8; 7] = [0, 43, 51, 60, 135, 139, 140];

/// The next header after an extension header of this kind at this offset, and its offset.
pub fn behind(frame: &[u8], kind: u8, at: usize) -> Option<Result<(u8, usize), Reason>> {
    if !EXTENSIONS.contains(&kind) {
        return None;
    }
    let Some([next, length]) = bytes(frame, at) else { return Some(Err(Reason::Truncated)) };
    let length = usize::from(length);
    Some(Ok((next, at + if kind == 51 { (length + 2) * 4 } else { (length + 1) * 8 })))
}

impl Walk<'_> {
    fn upper(&self, ip: &Ip) -> Result<Upper, Reason> {
        let (mut proto, mut at) = (ip.protocol, ip.payload());
        if !ip.is_ipv6() {
            let fragment = ip.is_fragment().then_some(ip.id);
            return Ok(Upper { proto, at, fragment, later: ip.later });
        }
        let mut fragment = None;
        let mut later = false;
        for _ in 0..8 {
            if proto == 44 {
                let [next, _, high, low, id @ ..]: [u8; 8] =
                    bytes(&self.frame, at).ok_or(Reason::Truncated)?;
                fragment = Some(u32::from_be_bytes(id));
                later = u16::from_be_bytes([high, low]) >> 3 != 0;
                (proto, at) = (next, at + 8);
            } else if let Some(next) = behind(&self.frame, proto, at) {
                (proto, at) = next?;
            } else {
                break;
            }
            if later {
                break;
            }
        }
        // "Too long" is more than 512 bytes of them.
        if at > ip.payload() + 512 {
            return Err(Reason::Malformed);
        }
        Ok(Upper { proto, at, fragment, later })
    }

    /// Reads the packet's flow.
    pub fn said(&self, ip: &Ip) -> Result<Said, Reason> {
        let frame = &self.frame;
        let Upper { proto, at, fragment, later } = self.upper(ip)?;
        let is_icmp = proto == if ip.is_ipv6() { ICMPV6 } else { ICMP };
        if is_icmp && !(ip.is_ipv6() && later) {
            return self.quoted(ip, at, fragment.is_some());
        }
        if ![TCP, UDP, SCTP].contains(&proto) {
            // More extension headers than are looked behind.
            let more = ip.is_ipv6() && !later && (EXTENSIONS.contains(&proto) || proto == 44);
            return Err(if more { Reason::Malformed } else { Reason::ServiceProtocol });
        }
        let mut said = Said {
            ends: [ip.src, ip.dst],
            proto,
            ports: [0; 2],
            part: Part::Later,
            transport: at,
            seen: Marks::default(),
            fragment,
            fault: None,
        };
        if later {
            return Ok(said);
        }
        // Bytes behind the packet's own end are padding, not ports. SCTP has at least one chunk.
        let shortest = match proto {
            TCP => 20,
            SCTP => 16,
            _ => 8,
        };
        if ip.at + ip.total < at + shortest && !(ip.is_huge && self.segment != 0) {
            return Err(Reason::Truncated);
        }
        let port = |at| half(frame, at).ok_or(Reason::Truncated);
        said.part = Part::Whole;
        said.ports = [port(at)?, port(at + 2)?];
        let seen = match proto {
            TCP => bytes(frame, at + 13).ok_or(Reason::Truncated).and_then(tcp_marks),
            SCTP => bytes(frame, at + 12).ok_or(Reason::Truncated).map(sctp_marks),
            _ => Ok(Marks::default()),
        };
        match seen {
            Ok(seen) => said.seen = seen,
            Err(reason) => said.fault = Some(reason),
        }
        Ok(said)
    }

    /// "An ICMP error is of the flow that answers what it quotes" (RFC 792; RFC 4443, section 3).
    fn quoted(&self, ip: &Ip, at: usize, is_fragment: bool) -> Result<Said, Reason> {
        let frame = &self.frame;
        let ipv6 = ip.is_ipv6();
        // Errors of IPv4 are handled only without options.
        let [kind] = bytes(frame, if ipv6 { at } else { ip.at + 20 }).ok_or(Reason::Truncated)?;
        let is_error = if ipv6 { (1..=4).contains(&kind) } else { [3, 11, 12].contains(&kind) };
        let header = if ipv6 { 40 } else { 20 };
        let is_whole = ip.is_plain()
            && at == ip.at + header
            && !is_fragment
            && ip.total >= header + 8 + header + 8;
        if !is_error || !is_whole {
            return Err(Reason::ServiceProtocol);
        }
        let quoted = Ip::at(frame, at + 8, ipv6).ok_or(Reason::Truncated)?;
        let transport = at + 8 + header;
        let start: [u8; 8] = bytes(frame, transport)
            .or_else(|| {
                // For IPv6 only the ports need to be present.
                let [a, b, c, d]: [u8; 4] = bytes(frame, transport).filter(|_| ipv6)?;
                Some([a, b, c, d, 0, 0, 0, 0])
            })
            .ok_or(Reason::Truncated)?;
        let is_right = if ipv6 { quoted.version == 6 } else { quoted.is_plain() && !quoted.later };
        if !is_right || quoted.src != ip.dst {
            return Err(Reason::UnrelatedError);
        }
        let [a, b, c, d, e, f, ..] = start;
        let (sport, dport) = match (quoted.protocol, a, b) {
            (TCP | UDP | SCTP, ..) => ([a, b], [c, d]),
            (ICMP, 8, 0) if !ipv6 => ([e, f], [0, 0]),
            _ => return Err(Reason::UnrelatedError),
        };
        Ok(Said {
            ends: [quoted.dst, quoted.src],
            proto: quoted.protocol,
            ports: [u16::from_be_bytes(dport), u16::from_be_bytes(sport)],
            part: Part::Quoted,
            transport,
            seen: Marks::default(),
            fragment: None,
            fault: None,
        })
    }

    /// The flow of a packet on network `vni`; `None` if one of its addresses has no name. A first
    /// fragment is remembered, and a later one has the ports of its first.
    pub fn named(&mut self, said: &Said, vni: u32, how: Naming) -> Result<Option<Flow>, Reason> {
        let is_ipv6 = said.ends[0].is_ipv6();
        if let Some(reason) = said.fault.filter(|_| is_ipv6) {
            return Err(reason);
        }
        let Some([src, dst]) = self.tables.names(vni, said.ends, how) else { return Ok(None) };
        let Said { proto, mut ports, part, transport, seen, .. } = *said;
        if let Some(id) = said.fragment {
            let key = FragmentKey { vni, src, dst, id, proto };
            if part == Part::Later {
                let [a, b, c, d, ..] = self.first_fragment(&key)?;
                ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
            } else {
                self.keep_fragment(key, transport)?;
            }
        }
        if let Some(reason) = said.fault {
            return Err(reason);
        }
        let [sport, dport] = ports;
        let key = FlowKey { vni, src, dst, sport, dport, proto, through: None };
        Ok(Some(Flow { key, transport, seen, part }))
    }

    /// The flow and its entry, for a packet with a known flow.
    pub fn flow(&mut self, ip: &Ip, vni: u32) -> Result<Option<Flow>, Reason> {
        let said = self.said(ip)?;
        self.named(&said, vni, Naming::default())
    }

    /// The fragments of an IPv4 packet.
    pub fn fragments_of(&mut self, ip: &Ip, vni: u32) -> Option<FragmentKey> {
        let [src, dst] = self.tables.names(vni, [ip.src, ip.dst], Naming::default())?;
        Some(FragmentKey { vni, src, dst, id: ip.id, proto: ip.protocol })
    }

    /// Keeps the first bytes of a first fragment's transport header.
    pub fn keep_fragment(&mut self, key: FragmentKey, transport: usize) -> Result<(), Reason> {
        let head = bytes(&self.frame, transport).ok_or(Reason::Truncated)?;
        self.tables.fragments.insert(key, Fragment { head, seen: self.now });
        Ok(())
    }

    /// The ports kept from the first fragment for a later one: "for 30 seconds".
    pub fn first_fragment(&self, key: &FragmentKey) -> Result<[u8; 8], Reason> {
        let kept = self.tables.fragments.get(key).ok_or(Reason::Fragment)?;
        let is_old = self.now.saturating_sub(kept.seen) > 30 * SECOND;
        if is_old { Err(Reason::Fragment) } else { Ok(kept.head) }
    }
}

/// FIN, SYN, RST and ACK are bits 0, 1, 2 and 4 (RFC 9293, section 3.1).
fn tcp_marks([flags]: [u8; 1]) -> Result<Marks, Reason> {
    // "What opens a connection does not end it."
    if flags & 0b10 != 0 && flags & 0b101 != 0 {
        return Err(Reason::Malformed);
    }
    let bits = [(0, Marks::FIN), (1, Marks::SYN), (2, Marks::RST), (4, Marks::ACK)];
    let set = bits.into_iter().filter(|(bit, _)| flags >> bit & 1 == 1);
    Ok(set.fold(Marks::default(), |all, (_, mark)| all | mark))
}

/// "INIT opens, ABORT resets, SHUTDOWN COMPLETE ends" (RFC 9260, section 3.2).
fn sctp_marks([chunk]: [u8; 1]) -> Marks {
    match chunk {
        1 => Marks::SYN,
        2 => Marks::SYN | Marks::ACK,
        6 => Marks::RST,
        14 => Marks::FIN | Marks::ACK,
        _ => Marks::ACK,
    }
}
