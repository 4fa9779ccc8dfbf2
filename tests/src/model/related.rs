//! "An ICMP error travels with the packets that answer the one it quotes": whose it is, and what it says
//! after translation (RFC 792, RFC 5508).

use overlay_common::{
    Be16, Reason,
    maps::{CONNTRACK_MASQUERADE, CONNTRACK_REPLY, Conntrack, ConntrackKey},
};

use super::{
    conntrack::{Flow, Part, reversed},
    frame::{ETHERNET, ICMP, Ip, SCTP, TCP, UDP, bytes, half, put, updated},
    walk::Walk,
};

/// The flow that an error is of.
pub fn flow(walk: &Walk<'_>, ip: &Ip, vni: u32) -> Result<Flow, Reason> {
    let [kind]: [u8; 1] = bytes(&walk.frame, ip.at + 20).ok_or(Reason::Truncated)?;
    let is_one = [3, 11, 12].contains(&kind)
        && ip.is_plain()
        && ip.protocol == ICMP
        && !ip.is_fragment()
        && ip.total >= 56;
    if !is_one {
        return Err(Reason::ServiceProtocol);
    }
    let quoted = Ip::at(&walk.frame, ip.at + 28).ok_or(Reason::Truncated)?;
    let start: [u8; 8] = bytes(&walk.frame, ip.at + 48).ok_or(Reason::Truncated)?;
    if !quoted.is_plain() || quoted.later || quoted.src != ip.dst {
        return Err(Reason::UnrelatedError);
    }
    let [a, b, c, d, e, f, ..] = start;
    let (sport, dport) = match (quoted.protocol, a, b) {
        (TCP | UDP | SCTP, ..) => ([a, b], [c, d]),
        (ICMP, 8, 0) => ([e, f], [0, 0]),
        _ => return Err(Reason::UnrelatedError),
    };
    let port = |bytes| Be16::new(u16::from_be_bytes(bytes));
    let key = reversed(ConntrackKey {
        saddr: quoted.src.into(),
        daddr: quoted.dst.into(),
        sport: port(sport),
        dport: port(dport),
        vni,
        proto: quoted.protocol,
        scope: [0; 3],
    });
    Ok(Flow { key, transport: ip.at + 48, seen: 0, part: Part::Quoted })
}

/// The quoted packet, and the error, as their receiver knows the flow. Every checksum that covers what
/// changes is kept right, if it is quoted.
pub fn requote(frame: &mut [u8], entry: &Conntrack) -> Result<(), Reason> {
    let ip = Ip::at(frame, ETHERNET).ok_or(Reason::Truncated)?;
    let quoted = Ip::at(frame, ip.at + 28).ok_or(Reason::Truncated)?;
    let transport = ip.at + 48;
    let before = frame[ETHERNET + 20..].to_vec();
    let old = [quoted.src.octets(), quoted.dst.octets()].concat();
    let new = [entry.daddr.octets(), entry.saddr.octets()].concat();
    let id = (entry.sport.get() | entry.dport.get()).to_be_bytes();
    let ports = [entry.dport.get().to_be_bytes(), entry.sport.get().to_be_bytes()].concat();
    let (field, checksum, fresh, covers_addresses) = match quoted.protocol {
        TCP => (transport, Some(transport + 16), &ports[..], true),
        UDP => (transport, Some(transport + 6), &ports[..], true),
        // The same ports, and a checksum of another kind.
        SCTP => (transport, None, &ports[..], false),
        _ => (transport + 4, Some(transport + 2), &id[..], false),
    };
    let was = frame[field..field + fresh.len()].to_vec();
    if let Some(checksum) = checksum.filter(|at| ip.total + ETHERNET >= at + 2) {
        let sum = half(frame, checksum).ok_or(Reason::Truncated)?;
        let mut now = if covers_addresses {
            updated(sum, &[&old[..], &was].concat(), &[&new[..], fresh].concat())
        } else {
            updated(sum, &was, fresh)
        };
        if quoted.protocol == UDP && now == 0 {
            now = 0xffff;
        }
        if !(quoted.protocol == UDP && sum == 0) {
            put(frame, checksum, &now.to_be_bytes());
        }
    }
    if quoted.protocol != SCTP {
        put(frame, field, fresh);
    }
    let sum = half(frame, quoted.at + 10).expect("a header");
    put(frame, quoted.at + 10, &updated(sum, &old, &new).to_be_bytes());
    put(frame, quoted.at + 12, &new);

    // The error's own checksum covers all of it.
    let after = frame[ETHERNET + 20..].to_vec();
    let even = before.len() & !1;
    let sum = half(frame, ETHERNET + 22).expect("a header");
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for at in (0..even).step_by(2).filter(|at| before[*at..at + 2] != after[*at..at + 2]) {
        from.extend(&before[at..at + 2]);
        to.extend(&after[at..at + 2]);
    }
    put(frame, ETHERNET + 22, &updated(sum, &from, &to).to_be_bytes());
    // "A client hears everything from the address that it asked, the outside from this host."
    let hides = [CONNTRACK_REPLY, CONNTRACK_MASQUERADE].contains(&entry.action);
    let source = if hides || ip.src == quoted.dst { entry.saddr.into() } else { ip.src };
    let (was, is) = ([ip.src, ip.dst], [source, entry.daddr.into()]);
    let octets = |pair: [std::net::Ipv4Addr; 2]| pair.map(|a| a.octets()).concat();
    let sum = half(frame, ip.at + 10).expect("a header");
    put(frame, ip.at + 10, &updated(sum, &octets(was), &octets(is)).to_be_bytes());
    put(frame, ip.at + 12, &octets(is));
    Ok(())
}
