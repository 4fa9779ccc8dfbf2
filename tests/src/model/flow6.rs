//! Flows of IPv6 packets: the numbers that stand for addresses, what of a packet says its flow, and its
//! translation.

use std::net::Ipv6Addr;

use overlay_common::{
    Be16, Be32, Ip6, Reason, hash,
    maps::{
        ANSWERED, CONNTRACK_FORWARD, CONNTRACK_REPLY, Conntrack, ConntrackKey, ENDPOINT_FLAG_HOST,
        Endpoint6Key, EndpointKey, Fragment, FragmentKey, TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_RST,
        TCP_SEEN_SYN, VNI_FLAG_IPV6,
    },
    wire::Udp,
};

use super::{
    conntrack::{Flow, Part, reversed},
    frame::{ETHERNET, SCTP, TCP, UDP, bytes, half, put, updated},
    ipv6::{Header, ICMPV6},
    walk::Walk,
};

const SECOND: u64 = 1_000_000_000;
/// Where the IPv6 header of an error's quote begins, and what follows that.
const QUOTED: usize = ETHERNET + 40 + 8;
const QUOTED_BODY: usize = QUOTED + 40;

/// What a packet says of its flow, without its addresses' numbers.
pub struct Said {
    /// The protocol of the flow.
    pub proto: u8,
    /// Source and destination port; of a later fragment none.
    pub ports: [Be16; 2],
    /// What of the flow it is.
    pub part: Part,
    /// Source and destination address of the flow.
    pub ends: [Ipv6Addr; 2],
    seen: u32,
    transport: usize,
    fragment: Option<Be32>,
}

impl Said {
    /// The flow without its addresses.
    pub fn nameless(&self) -> Flow {
        let [sport, dport] = self.ports;
        let key = ConntrackKey { sport, dport, proto: self.proto, ..ConntrackKey::default() };
        Flow { key, transport: self.transport, seen: self.seen, part: self.part }
    }
}

/// How addresses are named.
#[derive(Clone, Copy, Default)]
pub struct Naming {
    /// The source is outside, whatever it is on the network.
    pub source_outside: bool,
    /// Who is outside may be new.
    pub may_be_new: bool,
}

fn port(bytes: [u8; 2]) -> Be16 {
    Be16::new(u16::from_be_bytes(bytes))
}

impl Walk<'_> {
    /// "The number of an endpoint or a VIP on its network is its IPv4 address", which its MAC says.
    pub fn inside6(&self, vni: u32, ip: Ipv6Addr) -> Option<Be32> {
        let key = Endpoint6Key { vni, ip: ip.into() };
        let endpoint = self.tables.agent.endpoints6.get(&key).filter(|_| vni != 0)?;
        let [_, _, a, b, c, d] = endpoint.mac.bytes();
        (endpoint.flags & ENDPOINT_FLAG_HOST == 0).then_some(Be32::from_octets([a, b, c, d]))
    }

    /// "One outside has one of four numbers by a hash": the one that it has, or the first that is nobody's.
    pub fn outside6(&mut self, ip: Ipv6Addr, may_be_new: bool) -> Option<Be32> {
        let numbers = (0..4).map(|i| hash::addr6_id(&ip.into(), self.tables.addr6_secret, i));
        let numbers: Vec<Be32> = numbers.collect();
        let holder = |number: &Be32| self.outsider(*number);
        if let Some(own) = numbers.iter().find(|number| holder(number) == Some(ip)) {
            return Some(*own);
        }
        let free = *numbers.iter().find(|number| holder(number).is_none())?;
        may_be_new.then(|| {
            self.tables.addr6_ids_new.insert(free, ip.into());
            free
        })
    }

    fn outsider(&self, number: Be32) -> Option<Ipv6Addr> {
        let kept = self.tables.addr6_ids.get(&number);
        kept.or_else(|| self.tables.addr6_ids_new.get(&number)).map(|ip| (*ip).into())
    }

    /// Whose number it is, on a side of a network.
    pub fn address6(&self, side: u32, number: Be32) -> Option<Ipv6Addr> {
        if number.octets()[0] >= 240 {
            return self.outsider(number);
        }
        let key = EndpointKey { vni: side & !VNI_FLAG_IPV6, ip: number };
        self.tables.agent.addresses6.get(&key).map(|ip| (*ip).into())
    }

    /// "What schedulers hash of a client outside is its address", and not its number.
    pub fn hashed6(&self, number: Be32) -> Be32 {
        self.outsider(number).map_or(number, |ip| hash::of_node(&Ip6::from(ip)))
    }

    /// "As flows go from `ct_new` to `conntrack`, their addresses go from `addr6_ids_new` to `addr6_ids`."
    pub fn keep6(&mut self, number: Be32) {
        if !self.tables.addr6_ids.contains_key(&number)
            && let Some(ip) = self.tables.addr6_ids_new.remove(&number)
        {
            self.tables.addr6_ids.insert(number, ip);
        }
    }

    /// As above, both ends of a flow in use, in the client's direction.
    pub fn keep_both6(&mut self, flow: &Flow, entry: &Conntrack) {
        if entry.action == CONNTRACK_FORWARD && entry.flags & ANSWERED != 0 {
            self.keep6(flow.key.saddr);
            self.keep6(flow.key.daddr);
        }
    }

    /// What a packet says of its flow.
    pub fn said(&self, ip: &Header) -> Result<Said, Reason> {
        let said = self.said_of(ip);
        said.map_err(|(reason, _)| reason)
    }

    /// As [`Self::said`], with the protocol and destination port that were read before what is wrong.
    pub fn said_of(&self, ip: &Header) -> Result<Said, (Reason, Option<(u8, Be16)>)> {
        let frame = &self.frame;
        let short = (Reason::Truncated, None);
        let (mut next, mut at) = (ip.next, ip.body());
        let (mut fragment, mut later) = (None, false);
        let extensions = [0, 43, 51, 60, 135, 139, 140];
        for _ in 0..8 {
            if next == 44 {
                let [following, _, high, low, a, b, c, d] = bytes::<8>(frame, at).ok_or(short)?;
                fragment = Some(Be32::from_octets([a, b, c, d]));
                later = u16::from_be_bytes([high, low]) >> 3 != 0;
                (next, at) = (following, at + 8);
                if later {
                    break;
                }
            } else if extensions.contains(&next) {
                let [following, length] = bytes::<2>(frame, at).ok_or(short)?;
                let length = usize::from(length);
                at += if next == 51 { (length + 2) * 4 } else { (length + 1) * 8 };
                next = following;
            } else {
                break;
            }
        }
        // "Too long" is more than 512 bytes of them.
        if at > ip.body() + 512 {
            return Err((Reason::Malformed, None));
        }
        let ends = [ip.src, ip.dst];
        let proto = next;
        let has_ports = [TCP, UDP, SCTP].contains(&next);
        if later {
            if !has_ports {
                return Err((Reason::ServiceProtocol, None));
            }
            let (ports, part) = ([Be16::ZERO; 2], Part::Later);
            return Ok(Said { proto, ports, part, ends, seen: 0, transport: at, fragment });
        }
        if next == ICMPV6 {
            return self.quoted(ip, at, fragment).map_err(|reason| (reason, None));
        }
        if !has_ports {
            let more = extensions.contains(&next) || next == 44;
            let reason = if more { Reason::Malformed } else { Reason::ServiceProtocol };
            return Err((reason, None));
        }
        let shortest = match next {
            TCP => 20,
            SCTP => 16,
            _ => 8,
        };
        let is_huge = ip.payload == 0 && self.segment != 0;
        if ip.body() + ip.payload < at + shortest && !is_huge {
            return Err(short);
        }
        let [a, b, c, d] = bytes::<4>(frame, at).ok_or(short)?;
        let ports = [port([a, b]), port([c, d])];
        let known = Some((proto, ports[1]));
        let mut seen = 0;
        if next == TCP {
            let [flags] = bytes(frame, at + 13).ok_or((Reason::Truncated, known))?;
            let bits = [(0, TCP_SEEN_FIN), (1, TCP_SEEN_SYN), (2, TCP_SEEN_RST), (4, TCP_SEEN_ACK)];
            seen = bits.iter().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, s)| s).sum();
            if flags & 0b10 != 0 && flags & 0b101 != 0 {
                return Err((Reason::Malformed, known));
            }
        }
        if next == SCTP {
            seen = match bytes(frame, at + 12).ok_or((Reason::Truncated, known))? {
                [1] => TCP_SEEN_SYN,
                [2] => TCP_SEEN_SYN | TCP_SEEN_ACK,
                [6] => TCP_SEEN_RST,
                [14] => TCP_SEEN_FIN | TCP_SEEN_ACK,
                [_] => TCP_SEEN_ACK,
            };
        }
        Ok(Said { proto, ports, part: Part::Whole, ends, seen, transport: at, fragment })
    }

    /// "An ICMPv6 error is of the flow that answers what it quotes" (RFC 4443, section 3).
    fn quoted(&self, ip: &Header, at: usize, fragment: Option<Be32>) -> Result<Said, Reason> {
        let frame = &self.frame;
        let [kind] = bytes(frame, at).ok_or(Reason::Truncated)?;
        let is_whole = at == ip.body() && fragment.is_none() && ip.payload >= 8 + 40 + 8;
        if !(1..=4).contains(&kind) || !is_whole {
            return Err(Reason::ServiceProtocol);
        }
        let quoted: [u8; 40] = bytes(frame, at + 8).ok_or(Reason::Truncated)?;
        let [a, b, c, d] = bytes(frame, at + 48).ok_or(Reason::Truncated)?;
        let address = |at| Ipv6Addr::from(bytes::<16>(&quoted, at).expect("a whole header"));
        let (src, dst) = (address(8), address(24));
        let proto = quoted[6];
        if quoted[0] >> 4 != 6 || src != ip.dst || ![TCP, UDP, SCTP].contains(&proto) {
            return Err(Reason::UnrelatedError);
        }
        Ok(Said {
            proto,
            ports: [port([c, d]), port([a, b])],
            part: Part::Quoted,
            ends: [dst, src],
            seen: 0,
            transport: at + 48,
            fragment: None,
        })
    }

    /// The flow that a packet says, on network `vni`; `None` when somebody has no number. A first fragment
    /// is remembered.
    pub fn named(&mut self, said: &Said, vni: u32, how: Naming) -> Result<Option<Flow>, Reason> {
        let [source, dest] = said.ends;
        let saddr = match self.inside6(vni, source).filter(|_| !how.source_outside) {
            None => self.outside6(source, how.may_be_new),
            inside => inside,
        };
        let daddr = match self.inside6(vni, dest) {
            None => self.outside6(dest, how.may_be_new),
            inside => inside,
        };
        let (Some(saddr), Some(daddr)) = (saddr, daddr) else { return Ok(None) };
        let vni = vni | VNI_FLAG_IPV6;
        let [mut sport, mut dport] = said.ports;
        let proto = said.proto;
        if let Some(id) = said.fragment {
            let key = FragmentKey { saddr, daddr, vni, id, proto, pad: [0; 3] };
            if said.part == Part::Later {
                let kept = self.tables.fragments.get(&key).ok_or(Reason::Fragment)?;
                if self.now.saturating_sub(kept.seen) > 30 * SECOND {
                    return Err(Reason::Fragment);
                }
                (sport, dport) = (kept.head.source, kept.head.dest);
            } else {
                let head: [u8; 8] = bytes(&self.frame, said.transport).ok_or(Reason::Truncated)?;
                let [source, dest, length, checksum] =
                    [0, 2, 4, 6].map(|at| Be16::new(half(&head, at).expect("eight bytes")));
                let head = Udp { source, dest, length, checksum };
                self.tables.fragments.insert(key, Fragment { head, seen: self.now });
            }
        }
        let key = ConntrackKey { saddr, daddr, sport, dport, vni, proto, scope: [0; 3] };
        self.part = said.part;
        let Said { transport, seen, part, .. } = *said;
        Ok(Some(Flow { key, transport, seen, part }))
    }

    /// Both, for a packet whose flow is known if there is one.
    pub fn flow6(&mut self, ip: &Header, vni: u32) -> Result<Option<Flow>, Reason> {
        let said = self.said(ip)?;
        self.named(&said, vni, Naming::default())
    }

    /// Rewrites the packet, whose IPv6 header is behind an Ethernet header, from the tuple of its flow to
    /// what the entry says. Returns its new ends.
    pub fn translate6(
        &mut self,
        flow: &Flow,
        transport: usize,
        entry: &Conntrack,
    ) -> Result<[Ipv6Addr; 2], Reason> {
        let quotes = flow.part == Part::Quoted;
        let at = if quotes { QUOTED } else { ETHERNET };
        let address = |frame: &[u8], at| bytes::<16>(frame, at).map(Ipv6Addr::from);
        let frame = &self.frame;
        let first = address(frame, at + 8).ok_or(Reason::Truncated)?;
        let second = address(frame, at + 24).ok_or(Reason::Truncated)?;
        // What an error quotes goes the other way.
        let old = if quotes { [second, first] } else { [first, second] };
        let numbers = [(flow.key.saddr, entry.saddr), (flow.key.daddr, entry.daddr)];
        let mut new = old;
        for (i, (was, is)) in numbers.into_iter().enumerate() {
            if was != is {
                new[i] = self.address6(entry.vni, is).ok_or(Reason::NoEndpoint)?;
            }
        }
        if quotes {
            return self.requote6(flow, entry, (old, new));
        }
        let frame = &mut self.frame;
        let addresses = |ends: [Ipv6Addr; 2]| ends.map(|ip| ip.octets()).concat();
        // A later fragment has no ports, and SCTP keeps its own, under a checksum without addresses.
        if flow.part != Part::Later && flow.key.proto != SCTP {
            let is_udp = flow.key.proto == UDP;
            let field = transport + if is_udp { 6 } else { 16 };
            let sum = half(frame, field).ok_or(Reason::RewriteRefused)?;
            let tuple = |sport: Be16, dport: Be16| {
                [sport.raw(), dport.raw()].map(u16::to_ne_bytes).concat()
            };
            let was = tuple(flow.key.sport, flow.key.dport);
            let is = tuple(entry.sport, entry.dport);
            if !(is_udp && sum == 0) {
                let covered = [addresses(old), was].concat();
                let sum = updated(sum, &covered, &[addresses(new), is.clone()].concat());
                let sum = if is_udp && sum == 0 { 0xffff } else { sum };
                put(frame, field, &sum.to_be_bytes());
            }
            put(frame, transport, &is);
        }
        put(frame, ETHERNET + 8, &addresses(new));
        Ok(new)
    }

    /// The quoted packet as its sender knows it, every checksum that covers what changes, and the error's own
    /// addresses.
    fn requote6(
        &mut self,
        flow: &Flow,
        entry: &Conntrack,
        (old, new): ([Ipv6Addr; 2], [Ipv6Addr; 2]),
    ) -> Result<[Ipv6Addr; 2], Reason> {
        let frame = &mut self.frame;
        let before = frame.clone();
        let octets = |ends: [Ipv6Addr; 2]| ends.map(|ip| ip.octets()).concat();
        let own: [u8; 32] = bytes(frame, ETHERNET + 8).ok_or(Reason::Truncated)?;
        let payload = usize::from(half(frame, ETHERNET + 4).ok_or(Reason::Truncated)?);
        if flow.key.proto != SCTP {
            let ports = |a: Be16, b: Be16| [a.raw(), b.raw()].map(u16::to_ne_bytes).concat();
            let was = ports(flow.key.dport, flow.key.sport);
            let is = ports(entry.dport, entry.sport);
            let field = QUOTED_BODY + if flow.key.proto == TCP { 16 } else { 6 };
            if ETHERNET + 40 + payload >= field + 2 {
                let sum = half(frame, field).ok_or(Reason::Truncated)?;
                let covered = [octets(old), was].concat();
                let sum = updated(sum, &covered, &[octets(new), is.clone()].concat());
                let sum = if flow.key.proto == UDP && sum == 0 { 0xffff } else { sum };
                put(frame, field, &sum.to_be_bytes());
            }
            put(frame, QUOTED_BODY, &is);
        }
        put(frame, QUOTED + 8, &octets([new[1], new[0]]));
        // "A client hears everything from the address that it asked."
        let source = Ipv6Addr::from(bytes::<16>(&own, 0).expect("two addresses"));
        let hides = entry.action == CONNTRACK_REPLY || source == old[0];
        let ends = [if hides { new[0] } else { source }, new[1]];
        put(frame, ETHERNET + 8, &octets(ends));
        // The error's checksum covers its addresses and all that follows its header.
        let sum = half(frame, ETHERNET + 42).ok_or(Reason::RewriteRefused)?;
        let (mut from, mut to) = (own.to_vec(), octets(ends));
        let last = QUOTED + (frame.len() - QUOTED) / 2 * 2;
        for at in (QUOTED..last).step_by(2).filter(|at| before[*at..at + 2] != frame[*at..at + 2]) {
            from.extend(&before[at..at + 2]);
            to.extend(&frame[at..at + 2]);
        }
        put(frame, ETHERNET + 42, &updated(sum, &from, &to).to_be_bytes());
        Ok(ends)
    }

    /// Gives a packet its own tuple back.
    pub fn undo6(
        &mut self,
        flow: &Flow,
        transport: usize,
        entry: &Conntrack,
    ) -> Result<(), Reason> {
        // No error is answered with another one.
        if flow.part == Part::Quoted {
            return Err(Reason::TooBig);
        }
        let ConntrackKey { saddr, daddr, sport, dport, vni, .. } = flow.key;
        let own = Conntrack { saddr, daddr, sport, dport, vni, ..*entry };
        let Conntrack { saddr, daddr, sport, dport, vni, .. } = *entry;
        let key = ConntrackKey { saddr, daddr, sport, dport, vni, ..flow.key };
        self.translate6(&Flow { key, ..*flow }, transport, &own).map(|_| ())
    }

    /// The entry of replies to a flow that another node translates, if it is one in use.
    pub fn returning_kept(&self, flow: &Flow, sport: Be16) -> Option<Conntrack> {
        let key = ConntrackKey { sport, ..flow.key };
        self.tables.conntrack.get(&reversed(key)).copied()
    }
}
