//! Translated flows: what entries say, when they end, and how new ones are made.

use std::net::Ipv4Addr;

use overlay_common::{
    Be16, Be32, Reason, hash,
    maps::{
        ANSWERED, CONNTRACK_FORWARD, CONNTRACK_MASQUERADE, CONNTRACK_REPLY, CONNTRACK_REVERSE,
        CONNTRACK_UNMASQUERADE, Conntrack, ConntrackKey, DSR, TCP_SEEN_ACK, TCP_SEEN_FIN,
        TCP_SEEN_OTHER_FIN, TCP_SEEN_RST, TCP_SEEN_SYN, VIA_VIP,
    },
};

use super::{
    Tables,
    direct_return::Asked,
    frame::{SCTP, TCP, UDP},
    walk::{Target, Walk},
};

const SECOND: u64 = 1_000_000_000;

/// A packet's tuple, where its transport header is, and the TCP flags of it.
#[derive(Clone, Copy)]
pub struct Flow {
    /// The tuple on arrival.
    pub key: ConntrackKey,
    /// Offset of the transport header.
    pub transport: usize,
    /// Bits of `TCP_SEEN_*`.
    pub seen: u32,
    /// What of the flow the packet is.
    pub part: Part,
}

/// What of a flow a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A packet, or the first fragment of one.
    Whole,
    /// A later fragment.
    Later,
    /// An ICMP error that quotes a packet of the other direction.
    Quoted,
}

impl Flow {
    /// SYN without ACK.
    fn opens(&self) -> bool {
        self.seen & (TCP_SEEN_SYN | TCP_SEEN_ACK) == TCP_SEEN_SYN
    }

    /// "A connection whose client goes on has not been reset."
    fn goes_on(&self) -> bool {
        self.seen & TCP_SEEN_ACK != 0 && self.seen & TCP_SEEN_RST == 0
    }

    /// UDP and new connections may get another backend.
    pub fn is_free(&self) -> bool {
        (self.key.proto == UDP && self.part != Part::Quoted) || self.opens()
    }
}

/// The other direction of a tuple.
pub fn reversed(key: ConntrackKey) -> ConntrackKey {
    ConntrackKey { saddr: key.daddr, daddr: key.saddr, sport: key.dport, dport: key.sport, ..key }
}

/// "Entries are checked on use: TCP 60 s while opening, 7,500 s when established, 30 s after both FINs
/// or a RST; UDP 60 s, 300 s once both sides have spoken; SCTP as TCP; or as the service says. On the backend's
/// node what another one translates lives for 65,535 s." Time that is ahead has not passed.
pub fn is_over(proto: u8, entry: &Conntrack, now: u64) -> bool {
    let connects = [TCP, SCTP].contains(&proto);
    let seconds = match (connects, is_closed(proto, entry), entry.flags & TCP_SEEN_ACK != 0) {
        (true, true, _) => 30,
        (true, false, false) => 60,
        _ if entry.node != Be32::ZERO => 65_535,
        _ if entry.idle != 0 => entry.idle.into(),
        (true, ..) => 7_500,
        _ if proto == UDP && entry.flags & ANSWERED != 0 => 300,
        _ => 60,
    };
    now.saturating_sub(entry.last_seen) > seconds * SECOND
}

/// A reset, or a FIN of each side. SCTP says its end once, and flows to the outside hear of one side.
fn is_closed(proto: u8, entry: &Conntrack) -> bool {
    let seen = |bit| entry.flags & bit != 0;
    let hears_one = [CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE].contains(&entry.action);
    let fins = [seen(TCP_SEEN_FIN), seen(TCP_SEEN_OTHER_FIN)];
    let enough = if proto == SCTP || hears_one { 1 } else { 2 };
    seen(TCP_SEEN_RST) || fins.into_iter().filter(|fin| *fin).count() >= enough
}

/// "A tuple of TCP is nobody's only 62 s after a FIN: the backend may have it in TIME-WAIT until then."
fn is_free_again(proto: u8, entry: &Conntrack, now: u64) -> bool {
    let waits = proto == TCP && entry.flags & TCP_SEEN_FIN != 0;
    let since = now.saturating_sub(entry.last_seen);
    is_over(proto, entry, now) && (!waits || since > 62 * SECOND)
}

/// What an attempt to get a tuple finds of another flow: "four ports out of TIME-WAIT, then four that need not be".
fn is_given_up(attempt: u32, proto: u8, entry: &Conntrack, now: u64) -> bool {
    if attempt < 4 { is_free_again(proto, entry, now) } else { is_over(proto, entry, now) }
}

fn has_ended(entry: &Conntrack) -> bool {
    entry.flags & (TCP_SEEN_FIN | TCP_SEEN_RST) != 0
}

impl Walk<'_> {
    /// The live entry of a flow as it was; what the packet tells of the flow is noted in the table.
    pub fn find(&mut self, flow: &Flow) -> Option<Conntrack> {
        let now = self.now;
        let Tables { conntrack, opening, .. } = &mut *self.tables;
        let known = conntrack.get_mut(&flow.key).and_then(|entry| noted(entry, flow, now));
        if let Some(entry) = known {
            self.remind(flow, &entry);
            self.tell_end(flow, &entry);
            return known;
        }
        let begun = opening.get_mut(&flow.key).and_then(|entry| noted(entry, flow, now))?;
        self.tell_end(flow, &begun);
        if begun.action == CONNTRACK_FORWARD && !flow.opens() {
            self.confirm(flow, &begun);
        }
        Some(begun)
    }

    /// "The first FIN of each direction is told to the other one's entry, as is every reset of the backend."
    fn tell_end(&mut self, flow: &Flow, entry: &Conntrack) {
        let is_first_fin = flow.seen & TCP_SEEN_FIN != 0 && entry.flags & TCP_SEEN_FIN == 0;
        if !is_first_fin && flow.seen & TCP_SEEN_RST == 0 {
            return;
        }
        let other = match entry.action {
            CONNTRACK_FORWARD | CONNTRACK_REPLY => reply_key(&flow.key, entry),
            CONNTRACK_REVERSE if entry.dport != flow.key.dport => {
                let own = ConntrackKey { sport: entry.dport, ..reversed(flow.key) };
                own.through(entry.node)
            }
            _ => return,
        };
        let is_clients = entry.action == CONNTRACK_FORWARD;
        let reset = if is_clients { 0 } else { TCP_SEEN_RST };
        if let Some(other) = self.tables.held(&other) {
            other.flags |= told(flow) & (TCP_SEEN_OTHER_FIN | reset);
        }
    }

    /// "Replies that go straight to the client do not pass here, so the client keeps their tuple."
    fn remind(&mut self, flow: &Flow, forward: &Conntrack) {
        let now = self.now;
        let is_due = forward.action == CONNTRACK_FORWARD
            && forward.flags & DSR != 0
            && now.wrapping_sub(forward.last_seen) > SECOND;
        let answer = reply_key(&flow.key, forward);
        let Some(reply) = self.tables.conntrack.get_mut(&answer).filter(|_| is_due) else { return };
        let leads_to = (reply.saddr, reply.sport, reply.daddr, reply.dport, reply.vni);
        let key = &flow.key;
        if reply.action == CONNTRACK_REPLY
            && leads_to == (key.daddr, key.dport, key.saddr, key.sport, key.vni)
        {
            reply.last_seen = now;
        }
    }

    /// "A flow goes over when its client speaks again after an answer."
    fn confirm(&mut self, flow: &Flow, forward: &Conntrack) {
        let answer = reply_key(&flow.key, forward);
        let Tables { conntrack, opening, .. } = &mut *self.tables;
        let Some(reply) = opening.get(&answer).copied() else { return };
        if reply.action != CONNTRACK_REPLY || reply.flags & ANSWERED == 0 {
            return;
        }
        // A packet that is known by now has set the time of the entry in `ct_new`, not of the copy.
        let state = forward.flags | flow.seen | ANSWERED;
        conntrack.insert(answer, reply);
        conntrack.insert(flow.key, Conntrack { flags: state, ..*forward });
        opening.remove(&answer);
        opening.remove(&flow.key);
    }

    /// As [`Self::find`], only entries with this action.
    pub fn find_action(&mut self, flow: &Flow, action: u8) -> Option<Conntrack> {
        self.find(flow).filter(|entry| entry.action == action)
    }

    /// Makes both entries of a new flow.
    pub fn create(&mut self, flow: &Flow, target: &Target) -> Result<Conntrack, Reason> {
        let Flow { key, .. } = *flow;
        // "SCTP keeps its ports": its checksum is over the whole packet.
        if key.proto == SCTP && target.port != key.dport {
            return Err(Reason::ServiceProtocol);
        }
        let tries = if key.proto == SCTP { 1 } else { 8 };
        // "A backend that reaches itself through the VIP sees the VIP as its client."
        let itself = key.vni == target.backend.vni && key.saddr == target.backend.ip;
        let mut forward = Conntrack {
            saddr: if itself { key.daddr } else { key.saddr },
            daddr: target.backend.ip,
            sport: key.sport,
            dport: target.port,
            vni: target.backend.vni,
            service: target.service,
            backend: target.number,
            action: CONNTRACK_FORWARD,
            flags: flow.seen | target.via,
            idle: target.idle,
            last_seen: self.now,
            ..Conntrack::default()
        };
        let reply = Conntrack {
            saddr: key.daddr,
            daddr: key.saddr,
            sport: key.dport,
            dport: key.sport,
            vni: key.vni,
            action: CONNTRACK_REPLY,
            flags: target.via & VIA_VIP,
            ..forward
        };
        // "When two flows would look the same to a backend, the second one's source port is
        // translated": eight ports are tried, its own first, then ones of the dynamic range.
        for attempt in 0..tries {
            if attempt > 0 {
                forward.sport = other_port(&key, attempt);
            }
            let answer = reply_key(&key, &forward);
            let now = self.now;
            let Tables { conntrack, opening, .. } = &mut *self.tables;
            let is_others = |old: &Conntrack| {
                client(old) != client(&reply) && !is_given_up(attempt, key.proto, old, now)
            };
            if !conntrack.get(&answer).is_some_and(is_others) {
                conntrack.remove(&answer);
                let is_taken = opening.get(&answer).is_some_and(is_others);
                if is_taken {
                    continue;
                }
                opening.insert(answer, reply);
                conntrack.remove(&key);
                opening.insert(key, forward);
                return Ok(forward);
            }
        }
        Err(Reason::TupleTaken)
    }

    /// Whether a tuple of replies is nobody's, or this flow's own.
    pub fn is_free_for(&self, key: &ConntrackKey, reply: &Conntrack) -> bool {
        self.tables
            .conntrack
            .get(key)
            .is_none_or(|old| client(old) == client(reply) || is_over(key.proto, old, self.now))
    }

    /// "Node B notes: replies of this flow go through A." Returns the source port the backend sees:
    /// "when a client's flows come through two nodes with one source port, B gives the second one
    /// another port".
    ///
    /// "Or straight to the client": `said` is what the frame says of what was asked, and what of that is believed.
    pub fn note_return(
        &mut self,
        flow: &Flow,
        node: Ipv4Addr,
        (said, asked): (Option<Asked>, Option<Asked>),
    ) -> Result<Be16, Reason> {
        let node = Be32::from(node);
        let key = reversed(flow.key);
        let own = flow.key.sport;
        let now = self.now;
        let entry = settled(self.return_entry(&key, flow, node), &key, asked);
        let is_error = flow.part == Part::Quoted;
        let is_opening = !self.tables.conntrack.contains_key(&key);
        if let Some(old) = self.tables.held(&key)
            && (old.action, old.node, old.dport) == (CONNTRACK_REVERSE, node, own)
        {
            renew(old, flow, told(flow), now);
            if !says(old, said) {
                *old = settled(*old, &key, asked);
            }
            if is_opening {
                self.confirm_return(&key, flow);
            }
            return Ok(own);
        }
        // "Whose port was changed keeps it to its end": a new connection is another flow.
        let through = flow.key.through(node);
        let is_known = self.tables.held(&through).is_some_and(|other| {
            let has_ended = flow.opens() && has_ended(other);
            other.node == node && !is_over(through.proto, other, now) && !has_ended
        });
        let is_free = self.tables.held(&key).is_none_or(|old| is_free_again(key.proto, old, now));
        match is_known {
            true => Ok(self.note_other_way(flow, through)),
            _ if is_error => Err(Reason::UnrelatedError),
            _ if is_free => {
                match self.tables.held(&key) {
                    Some(old) => *old = entry,
                    None => {
                        self.tables.opening.insert(key, entry);
                    }
                }
                Ok(own)
            }
            _ => self.change_port(flow, node),
        }
    }

    /// "A flow goes over when its client speaks again after an answer", on the backend's node.
    fn confirm_return(&mut self, key: &ConntrackKey, flow: &Flow) -> bool {
        let Tables { conntrack, opening, .. } = &mut *self.tables;
        let Some(entry) = opening.get(key).filter(|e| !flow.opens() && e.flags & ANSWERED != 0)
        else {
            return false;
        };
        conntrack.insert(*key, *entry);
        opening.remove(key);
        true
    }

    /// The port of a flow that was given another one, whose entry is there.
    fn note_other_way(&mut self, flow: &Flow, through: ConntrackKey) -> Be16 {
        let now = self.now;
        let is_opening = !self.tables.conntrack.contains_key(&through);
        let Some(known) = self.tables.held(&through) else { unreachable!("looked up before") };
        let was_reset = known.flags & TCP_SEEN_RST != 0;
        renew(known, flow, flow.seen, now);
        let known = *known;
        let key = ConntrackKey { dport: known.sport, ..reversed(flow.key) };
        // "A reset by the client ends both", and neither when it goes on.
        if let Some(reply) = self.tables.held(&key) {
            if was_reset && flow.goes_on() {
                reply.flags &= !TCP_SEEN_RST;
            }
            reply.flags |= told(flow) & (TCP_SEEN_RST | TCP_SEEN_OTHER_FIN);
        }
        if is_opening && self.confirm_return(&key, flow) {
            self.tables.conntrack.insert(through, known);
            self.tables.opening.remove(&through);
        }
        known.sport
    }

    fn change_port(&mut self, flow: &Flow, node: Be32) -> Result<Be16, Reason> {
        let through = flow.key.through(node);
        // A packet in the middle of a flow that is not known belongs to no way.
        if !flow.is_free() || flow.key.proto == SCTP {
            return Err(Reason::TupleTaken);
        }
        for attempt in 1..=8 {
            let port = other_port(&flow.key, attempt);
            let key = ConntrackKey { dport: port, ..reversed(flow.key) };
            let Tables { conntrack, opening, .. } = &mut *self.tables;
            let now = self.now;
            // "Or one that the client had through the same node before."
            let own = (CONNTRACK_REVERSE, node, flow.key.sport);
            let is_others = |old: &Conntrack| {
                (old.action, old.node, old.dport) != own
                    && !is_given_up(attempt - 1, key.proto, old, now)
            };
            if conntrack.get(&key).is_some_and(is_others) {
                continue;
            }
            conntrack.remove(&key);
            if opening.get(&key).is_some_and(is_others) {
                continue;
            }
            opening.remove(&key);
            let entry = self.return_entry(&key, flow, node);
            self.tables.opening.insert(key, entry);
            let forward = Conntrack {
                saddr: flow.key.saddr,
                daddr: flow.key.daddr,
                sport: port,
                dport: flow.key.dport,
                action: CONNTRACK_FORWARD,
                ..entry
            };
            self.tables.conntrack.remove(&through);
            self.tables.opening.insert(through, forward);
            return Ok(port);
        }
        Err(Reason::TupleTaken)
    }

    /// Replies to the backend's view of the client go through `node`, to the client's own port.
    fn return_entry(&self, key: &ConntrackKey, flow: &Flow, node: Be32) -> Conntrack {
        Conntrack {
            saddr: key.saddr,
            daddr: key.daddr,
            sport: key.sport,
            dport: flow.key.sport,
            vni: key.vni,
            node,
            action: CONNTRACK_REVERSE,
            flags: told(flow),
            last_seen: self.now,
            ..Conntrack::default()
        }
    }
}

impl Tables {
    /// An entry, wherever it is.
    fn held(&mut self, key: &ConntrackKey) -> Option<&mut Conntrack> {
        match self.conntrack.get_mut(key) {
            None => self.opening.get_mut(key),
            entry => entry,
        }
    }
}

/// Whether an entry of the way back has what a frame says already, or both have nothing.
fn says(entry: &Conntrack, said: Option<Asked>) -> bool {
    let has = (entry.flags & DSR != 0).then_some((entry.saddr, entry.sport));
    has == said
}

/// An entry of the way back whose replies leave under what was asked, or as the backend's.
fn settled(entry: Conntrack, key: &ConntrackKey, asked: Option<Asked>) -> Conntrack {
    let (saddr, sport) = asked.unwrap_or((key.saddr, key.sport));
    let direct = if asked.is_some() { DSR } else { 0 };
    Conntrack { saddr, sport, flags: entry.flags & !DSR | direct, ..entry }
}

/// Whom the flow of a reply entry is with.
fn client(e: &Conntrack) -> (u8, Be32, Be32, Be16, Be16, u32) {
    (e.action, e.saddr, e.daddr, e.sport, e.dport, e.vni)
}

/// The tuple of answers to what `forward` makes of a flow.
fn reply_key(key: &ConntrackKey, forward: &Conntrack) -> ConntrackKey {
    ConntrackKey {
        saddr: forward.daddr,
        daddr: forward.saddr,
        sport: forward.dport,
        dport: forward.sport,
        vni: forward.vni,
        proto: key.proto,
        scope: [0; 3],
    }
}

/// A live entry as it was, with what a packet of its flow tells noted in it.
fn noted(entry: &mut Conntrack, flow: &Flow, now: u64) -> Option<Conntrack> {
    // The tuple of a connection that has ended may be used again.
    if is_over(flow.key.proto, entry, now) || (flow.opens() && has_ended(entry)) {
        return None;
    }
    let was = *entry;
    // At the backend's node only the client's own packets say so: the backend may not have heard of its reset yet.
    if flow.goes_on() && entry.action != CONNTRACK_REVERSE {
        entry.flags &= !TCP_SEEN_RST;
    }
    entry.flags |= flow.seen;
    if [CONNTRACK_REPLY, CONNTRACK_REVERSE].contains(&entry.action) {
        entry.flags |= ANSWERED;
    }
    touch(entry, now);
    Some(was)
}

/// Another source port: one of the dynamic range, by the tuple and the attempt.
fn other_port(key: &ConntrackKey, attempt: u32) -> Be16 {
    let hash = hash::mix(key.saddr.raw() ^ attempt, key.sport.raw().into());
    Be16::new(49_152 + (hash % 16_384) as u16)
}

/// What the client's packet says of its backend's direction.
fn told(flow: &Flow) -> u32 {
    match flow.seen & TCP_SEEN_FIN {
        0 => flow.seen,
        _ => flow.seen & !TCP_SEEN_FIN | TCP_SEEN_OTHER_FIN,
    }
}

/// An entry of a packet's flow: a SYN begins it anew.
fn renew(entry: &mut Conntrack, flow: &Flow, seen: u32, now: u64) {
    if flow.goes_on() {
        entry.flags &= !TCP_SEEN_RST;
    }
    entry.flags = if flow.opens() { seen } else { entry.flags | seen };
    touch(entry, now);
}

/// The time is written once a second at most.
fn touch(entry: &mut Conntrack, now: u64) {
    if now.wrapping_sub(entry.last_seen) > SECOND {
        entry.last_seen = now;
    }
}
