//! Translation: addresses and ports of a packet, and every checksum that covers them (RFC 1624).

use std::net::IpAddr;

use overlay_common::Reason;

use super::{
    bytes::{self, ETHERNET, ICMP, SCTP, TCP, UDP, half, put, updated},
    packet::{Flow, Ip, Part},
    state::{Action, Entry, Name},
    walk::Walk,
};

/// Addresses as bytes.
fn octets(ends: [IpAddr; 2]) -> Vec<u8> {
    ends.iter().flat_map(|ip| bytes::octets(*ip)).collect()
}

fn ports(source: u16, dest: u16) -> Vec<u8> {
    [source.to_be_bytes(), dest.to_be_bytes()].concat()
}

/// The offset of the addresses from the beginning of an IP header.
fn addresses(ipv6: bool) -> usize {
    if ipv6 { 8 } else { 12 }
}

/// Writes both addresses of the header at `at`, and brings the checksum of IPv4 up to date.
fn readdress(frame: &mut [u8], at: usize, (old, new): (&[u8], &[u8])) -> Result<(), Reason> {
    let ipv6 = new.len() == 32;
    if !ipv6 {
        let sum = half(frame, at + 10).ok_or(Reason::Truncated)?;
        put(frame, at + 10, &updated(sum, old, new).to_be_bytes());
    }
    put(frame, at + addresses(ipv6), new);
    Ok(())
}

impl Walk<'_> {
    /// Rewrites the packet behind an Ethernet header from the tuple of its flow to the tuple in
    /// `entry`. Returns its new ends.
    pub fn translate(&mut self, flow: &Flow, entry: &Entry) -> Result<[IpAddr; 2], Reason> {
        let ipv6 = flow.key.is_ipv6();
        // An IPv6 address that stays need not be known.
        let new = |was: Name, is: Name| match was == is {
            true => Ok(is.ip),
            false => self.tables.address(entry.vni, is).ok_or(Reason::NoEndpoint),
        };
        let ends = [new(flow.key.src, entry.src)?, new(flow.key.dst, entry.dst)?];
        let ip = Ip::at(&self.frame, ETHERNET, ipv6).ok_or(Reason::Truncated)?;
        if flow.part == Part::Quoted {
            return self.requote(flow, entry, (&ip, ends));
        }
        let frame = &mut self.frame;
        let (old, new) = (octets([ip.src, ip.dst]), octets(ends));
        let at = flow.transport;
        match flow.key.proto {
            // A later fragment has no ports, and SCTP keeps its own, under a checksum without
            // addresses.
            _ if flow.part == Part::Later => {}
            SCTP => {}
            ICMP => {
                // An echo has one identifier (RFC 792), and a checksum over nothing else of the
                // tuple.
                let id = (entry.sport | entry.dport).to_be_bytes();
                let sum = half(frame, at + 2).ok_or(Reason::RewriteRefused)?;
                let sum = updated(sum, &frame[at + 4..at + 6], &id);
                put(frame, at + 2, &sum.to_be_bytes());
                put(frame, at + 4, &id);
            }
            proto => {
                let is_udp = proto == UDP;
                let field = at + if is_udp { 6 } else { 16 };
                let sum = half(frame, field).ok_or(Reason::RewriteRefused)?;
                let new_ports = ports(entry.sport, entry.dport);
                // RFC 768: zero is "no checksum", and a sum that comes out as zero is sent as all
                // ones.
                if !(is_udp && sum == 0) {
                    let covered = [&old[..], &frame[at..at + 4]].concat();
                    let sum = updated(sum, &covered, &[&new[..], &new_ports].concat());
                    let sum = if is_udp && sum == 0 { 0xffff } else { sum };
                    put(frame, field, &sum.to_be_bytes());
                }
                put(frame, at, &new_ports);
            }
        }
        readdress(frame, ETHERNET, (&old, &new))?;
        Ok(ends)
    }

    /// The quoted packet, and the error, as their receiver knows the flow (RFC 5508). Every
    /// checksum that covers what changes is kept right, if it is quoted.
    fn requote(
        &mut self,
        flow: &Flow,
        entry: &Entry,
        (ip, ends): (&Ip, [IpAddr; 2]),
    ) -> Result<[IpAddr; 2], Reason> {
        let ipv6 = ip.is_ipv6();
        let frame = &mut self.frame;
        let before = frame.clone();
        let (icmp, quote) = (ip.payload(), ip.payload() + 8);
        let quoted = Ip::at(frame, quote, ipv6).ok_or(Reason::Truncated)?;
        // The quoted packet has the opposite direction.
        let (old, new) = (octets([quoted.src, quoted.dst]), octets([ends[1], ends[0]]));
        let at = flow.transport;
        let id = (entry.sport | entry.dport).to_be_bytes();
        let ports = ports(entry.dport, entry.sport);
        let (field, checksum, fresh) = match flow.key.proto {
            TCP => (at, at + 16, &ports[..]),
            UDP => (at, at + 6, &ports[..]),
            _ => (at + 4, at + 2, &id[..]),
        };
        // SCTP keeps its ports, under a checksum of another kind.
        if flow.key.proto != SCTP {
            let is_udp = flow.key.proto == UDP;
            if ETHERNET + ip.total >= checksum + 2 {
                let sum = half(frame, checksum).ok_or(Reason::Truncated)?;
                let was = &frame[field..field + fresh.len()];
                let now = match flow.key.proto {
                    ICMP => updated(sum, was, fresh),
                    _ => updated(sum, &[&old[..], was].concat(), &[&new[..], fresh].concat()),
                };
                let now = if is_udp && now == 0 { 0xffff } else { now };
                // UDP over IPv6 has a checksum always (RFC 8200, section 8.1).
                if ipv6 || !is_udp || sum != 0 {
                    put(frame, checksum, &now.to_be_bytes());
                }
            }
            put(frame, field, fresh);
        }
        readdress(frame, quote, (&old, &new))?;

        // "A client hears everything from the address that it asked, the outside from this host."
        let hides = matches!(entry.action, Action::Reply | Action::Snat) || ip.src == quoted.dst;
        let own = [if hides { ends[0] } else { ip.src }, ends[1]];
        let (was, is) = (octets([ip.src, ip.dst]), octets(own));
        // The error's own checksum covers all that follows its header, that of ICMPv6 its addresses
        // too.
        let sum = half(frame, icmp + 2).ok_or(Reason::RewriteRefused)?;
        let last = quote + (frame.len() - quote) / 2 * 2;
        let (mut from, mut to) = if ipv6 { (was.clone(), is.clone()) } else { Default::default() };
        for at in (quote..last).step_by(2).filter(|at| before[*at..at + 2] != frame[*at..at + 2]) {
            from.extend(&before[at..at + 2]);
            to.extend(&frame[at..at + 2]);
        }
        put(frame, icmp + 2, &updated(sum, &from, &to).to_be_bytes());
        readdress(frame, ETHERNET, (&was, &is))?;
        Ok(own)
    }

    /// Restores a packet's own tuple: an answer must quote the packet that its sender sent.
    pub fn undo(&mut self, flow: &Flow, entry: &Entry) -> Result<(), Reason> {
        // An error is never answered with an error.
        if flow.part == Part::Quoted {
            return Err(Reason::TooBig);
        }
        let own = Entry::unchanged(&flow.key, entry.action, 0);
        let key = entry.tuple(flow.key.proto);
        self.translate(&Flow { key, ..*flow }, &own).map(|_| ())
    }
}
