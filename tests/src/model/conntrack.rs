//! Tracked flows: the content of entries, their end, and the creation of new ones.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{Reason, hash};

use super::{
    balance::Target,
    bytes::{SCTP, TCP, UDP},
    dsr::Frontend,
    maps::AddressIds,
    packet::{Flow, Part},
    state::{Action, Entry, FlowKey, Marks, Name, Tables},
    walk::Walk,
};

const SECOND: u64 = 1_000_000_000;

impl Flow {
    /// SYN without ACK.
    pub fn opens(&self) -> bool {
        self.seen.any(Marks::SYN) && !self.seen.any(Marks::ACK)
    }

    /// "A connection whose client goes on has not been reset."
    fn goes_on(&self) -> bool {
        self.seen.any(Marks::ACK) && !self.seen.any(Marks::RST)
    }

    /// UDP and new connections may get another backend.
    pub fn is_free(&self) -> bool {
        (self.key.proto == UDP && self.part != Part::Quoted) || self.opens()
    }

    /// The marks that the client's packet tells the entry of its backend's direction.
    fn told(&self) -> Marks {
        let fin = if self.seen.any(Marks::FIN) { Marks::OTHER_FIN } else { Marks::default() };
        self.seen.without(Marks::FIN) | fin
    }
}

impl Entry {
    /// "Entries are checked on use: TCP 60 s while opening, 7,500 s when established, 30 s after
    /// both FINs or a RST; UDP 60 s, 300 s once both sides have spoken; SCTP as TCP; or as the
    /// service says. On the backend's node what another one translates lives for 65,535 s." Time
    /// that is ahead has not passed.
    pub fn is_over(&self, proto: u8, now: u64) -> bool {
        let connects = [TCP, SCTP].contains(&proto);
        let seconds = match (connects, self.is_closed(proto), self.marks.any(Marks::ACK)) {
            (true, true, _) => 30,
            (true, false, false) => 60,
            _ if self.node.is_some() => 65_535,
            _ if self.idle != 0 => self.idle.into(),
            (true, ..) => 7_500,
            _ if proto == UDP && self.marks.any(Marks::ANSWERED) => 300,
            _ => 60,
        };
        now.saturating_sub(self.last_seen) > seconds * SECOND
    }

    /// A reset, or a FIN of each side. SCTP signals its end once, and flows to the outside see one
    /// side.
    fn is_closed(&self, proto: u8) -> bool {
        let hears_one = matches!(self.action, Action::Snat | Action::Unsnat);
        let fins = [Marks::FIN, Marks::OTHER_FIN].map(|fin| self.marks.any(fin));
        let enough = if proto == SCTP || hears_one { 1 } else { 2 };
        self.marks.any(Marks::RST) || fins.into_iter().filter(|fin| *fin).count() >= enough
    }

    /// "A tuple of TCP is free only 62 s after a FIN: the backend may have it in TIME-WAIT until
    /// then."
    fn is_free_again(&self, proto: u8, now: u64) -> bool {
        let waits = proto == TCP && self.marks.any(Marks::FIN);
        let since = now.saturating_sub(self.last_seen);
        self.is_over(proto, now) && (!waits || since > 62 * SECOND)
    }

    /// Whether an attempt to get a tuple may take it from this flow: "four ports out of TIME-WAIT,
    /// then four that need not be".
    fn is_given_up(&self, attempt: u32, proto: u8, now: u64) -> bool {
        if attempt < 4 { self.is_free_again(proto, now) } else { self.is_over(proto, now) }
    }

    /// A FIN or a reset was seen.
    pub fn has_ended(&self) -> bool {
        self.marks.any(Marks::FIN | Marks::RST)
    }

    /// The client of a reply entry, and the destination that the client sent to.
    pub fn client(&self) -> (Action, FlowKey) {
        (self.action, self.tuple(0))
    }

    /// The tuple of answers to packets that this entry has translated.
    pub fn answers(&self, proto: u8) -> FlowKey {
        self.tuple(proto).reversed()
    }

    /// Notes a packet in a live entry. Returns the entry as it was before.
    fn note(&mut self, flow: &Flow, now: u64) -> Option<Self> {
        // The tuple of an ended connection may be used again.
        if self.is_over(flow.key.proto, now) || (flow.opens() && self.has_ended()) {
            return None;
        }
        let was = *self;
        // At the backend's node only the client's own packets are noted: the backend may not have
        // received the reset yet.
        if flow.goes_on() && self.action != Action::Reverse {
            self.marks = self.marks.without(Marks::RST);
        }
        self.marks |= flow.seen;
        if matches!(self.action, Action::Reply | Action::Reverse) {
            self.marks |= Marks::ANSWERED;
        }
        self.touch(now);
        Some(was)
    }

    /// Notes a client's packet on the backend's node: a SYN begins the flow anew.
    fn renew(&mut self, flow: &Flow, seen: Marks, now: u64) {
        if flow.goes_on() {
            self.marks = self.marks.without(Marks::RST);
        }
        self.marks = if flow.opens() { seen } else { self.marks | seen };
        self.touch(now);
    }

    /// The time is written once a second at most.
    fn touch(&mut self, now: u64) {
        if now.wrapping_sub(self.last_seen) > SECOND {
            self.last_seen = now;
        }
    }

    /// The reverse path under the frontend, for DSR, or as the backend's.
    fn under(self, key: &FlowKey, frontend: Option<Frontend>) -> Self {
        let (src, sport) = frontend.unwrap_or((key.src, key.sport));
        let dsr = if frontend.is_some() { Marks::DSR } else { Marks::default() };
        Self { src, sport, marks: self.marks.without(Marks::DSR) | dsr, ..self }
    }
}

impl Walk<'_> {
    /// The live entry of a flow, as it was before this packet. The table notes the packet.
    pub fn find(&mut self, flow: &Flow) -> Option<Entry> {
        let now = self.now;
        let known = self.tables.conntrack.get_mut(&flow.key).and_then(|e| e.note(flow, now));
        if let Some(entry) = known {
            self.remind(flow, &entry);
            self.tell_end(flow, &entry);
            return known;
        }
        let begun = self.tables.ct_new.get_mut(&flow.key).and_then(|e| e.note(flow, now))?;
        self.tell_end(flow, &begun);
        if begun.action == Action::Forward && !flow.opens() {
            self.confirm(flow, &begun);
        }
        Some(begun)
    }

    /// Like [`Self::find`], but only for entries with this action.
    pub fn find_action(&mut self, flow: &Flow, action: Action) -> Option<Entry> {
        self.find(flow).filter(|entry| entry.action == action)
    }

    /// "The first FIN of each direction is told to the other one's entry, as is every reset of the
    /// backend."
    fn tell_end(&mut self, flow: &Flow, entry: &Entry) {
        let is_first_fin = flow.seen.any(Marks::FIN) && !entry.marks.any(Marks::FIN);
        if !is_first_fin && !flow.seen.any(Marks::RST) {
            return;
        }
        let other = match entry.action {
            Action::Forward | Action::Reply => entry.answers(flow.key.proto),
            Action::Reverse if entry.dport != flow.key.dport => {
                FlowKey { sport: entry.dport, through: entry.node, ..flow.key.reversed() }
            }
            _ => return,
        };
        let reset = if entry.action == Action::Forward { Marks::default() } else { Marks::RST };
        if let Some(other) = self.tables.held(&other) {
            other.marks |= flow.told().and(Marks::OTHER_FIN | reset);
        }
    }

    /// "Replies of DSR do not pass here, so the client keeps their tuple."
    fn remind(&mut self, flow: &Flow, forward: &Entry) {
        let now = self.now;
        let is_due = forward.action == Action::Forward
            && forward.marks.any(Marks::DSR)
            && now.wrapping_sub(forward.last_seen) > SECOND;
        let proto = flow.key.proto;
        if let Some(reply) = self.tables.conntrack.get_mut(&forward.answers(proto))
            && is_due
            && reply.action == Action::Reply
            && reply.tuple(proto).reversed() == flow.key
        {
            reply.last_seen = now;
        }
    }

    /// "A flow goes over when its client speaks again after an answer."
    fn confirm(&mut self, flow: &Flow, forward: &Entry) {
        let answer = forward.answers(flow.key.proto);
        let Tables { conntrack, ct_new, .. } = &mut *self.tables;
        let Some(reply) = ct_new.get(&answer).copied() else { return };
        if reply.action != Action::Reply || !reply.marks.any(Marks::ANSWERED) {
            return;
        }
        // A packet of a known flow has set the time of the entry in `ct_new`, not that of the copy.
        let marks = forward.marks | flow.seen | Marks::ANSWERED;
        conntrack.insert(answer, reply);
        conntrack.insert(flow.key, Entry { marks, ..*forward });
        ct_new.remove(&answer);
        ct_new.remove(&flow.key);
    }

    /// Makes both entries of a new flow.
    pub fn create(&mut self, flow: &Flow, target: &Target) -> Result<Entry, Reason> {
        let Flow { key, .. } = *flow;
        // "SCTP keeps its ports": its checksum is over the whole packet.
        if key.proto == SCTP && target.port != key.dport {
            return Err(Reason::ServiceProtocol);
        }
        let tries = if key.proto == SCTP { 1 } else { 8 };
        // "A backend that reaches itself through the VIP sees the VIP as its client."
        let itself = key.vni == target.vni && key.src == target.backend;
        let mut forward = Entry {
            src: if itself { key.dst } else { key.src },
            dst: target.backend,
            sport: key.sport,
            dport: target.port,
            vni: target.vni,
            service: target.service,
            backend: target.number,
            node: None,
            action: Action::Forward,
            marks: flow.seen | target.marks,
            idle: target.idle,
            last_seen: self.now,
        };
        let FlowKey { src, dst, sport, dport, vni, .. } = key.reversed();
        let marks = target.marks.and(Marks::VIP);
        let reply = Entry { src, dst, sport, dport, vni, action: Action::Reply, marks, ..forward };
        // "When two flows would look the same to a backend, the second one's source port is
        // translated": eight ports are tried, its own first, then ones of the dynamic range.
        for attempt in 0..tries {
            if attempt > 0 {
                forward.sport = other_port(&self.tables.ids, &key, attempt);
            }
            let answer = forward.answers(key.proto);
            if self.take(&answer, attempt, |old| old.client() == reply.client()) {
                self.tables.ct_new.insert(answer, reply);
                self.tables.conntrack.remove(&key);
                self.tables.ct_new.insert(key, forward);
                return Ok(forward);
            }
        }
        Err(Reason::TupleTaken)
    }

    /// Takes a tuple that no other flow has. A flow in use that has given its tuple up is removed,
    /// also if a new flow then has the tuple.
    fn take(&mut self, key: &FlowKey, attempt: u32, is_own: impl Fn(&Entry) -> bool) -> bool {
        let now = self.now;
        let is_others = |old: &Entry| !is_own(old) && !old.is_given_up(attempt, key.proto, now);
        if self.tables.conntrack.get(key).is_some_and(is_others) {
            return false;
        }
        self.tables.conntrack.remove(key);
        if self.tables.ct_new.get(key).is_some_and(is_others) {
            return false;
        }
        self.tables.ct_new.remove(key);
        true
    }

    /// "Node B notes: replies of this flow go through A." Returns the source port the backend sees:
    /// "when a client's flows come through two nodes with one source port, B gives the second one
    /// another port".
    ///
    /// `said` is the frontend in the frame, and `believed` is the frontend that is accepted.
    pub fn note_reverse(
        &mut self,
        flow: &Flow,
        node: Ipv4Addr,
        (said, believed): (Option<Frontend>, Option<Frontend>),
    ) -> Result<u16, Reason> {
        let key = flow.key.reversed();
        let own = flow.key.sport;
        let now = self.now;
        let is_new = !self.tables.conntrack.contains_key(&key);
        if let Some(old) = self.tables.held(&key)
            && (old.action, old.node, old.dport) == (Action::Reverse, Some(node), own)
        {
            old.renew(flow, flow.told(), now);
            let has = old.marks.any(Marks::DSR).then_some((old.src, old.sport));
            if has != said {
                *old = old.under(&key, believed);
            }
            if is_new {
                self.confirm_reverse(&key, flow);
            }
            return Ok(own);
        }
        // "A remapped flow keeps its port until it ends": a new connection is another flow.
        let through = FlowKey { through: Some(node), ..flow.key };
        let is_known = self.tables.held(&through).is_some_and(|other| {
            let has_ended = flow.opens() && other.has_ended();
            other.node == Some(node) && !other.is_over(through.proto, now) && !has_ended
        });
        if is_known {
            return Ok(self.note_remapped(flow, through));
        }
        if flow.part == Part::Quoted {
            return Err(Reason::UnrelatedError);
        }
        let entry = self.reverse_entry(&key, flow, node).under(&key, believed);
        match self.tables.held(&key) {
            None => {
                self.tables.ct_new.insert(key, entry);
            }
            Some(old) if old.is_free_again(key.proto, now) => *old = entry,
            Some(_) => return self.remap(flow, node),
        }
        Ok(own)
    }

    /// "A flow goes over when its client speaks again after an answer", on the backend's node.
    fn confirm_reverse(&mut self, key: &FlowKey, flow: &Flow) -> bool {
        let Tables { conntrack, ct_new, .. } = &mut *self.tables;
        let answered = ct_new.get(key).filter(|entry| entry.marks.any(Marks::ANSWERED));
        let Some(entry) = answered.filter(|_| !flow.opens()) else { return false };
        conntrack.insert(*key, *entry);
        ct_new.remove(key);
        true
    }

    /// Notes the port of a remapped flow that has an entry.
    fn note_remapped(&mut self, flow: &Flow, through: FlowKey) -> u16 {
        let now = self.now;
        let is_new = !self.tables.conntrack.contains_key(&through);
        let Some(known) = self.tables.held(&through) else { unreachable!("looked up before") };
        let was_reset = known.marks.any(Marks::RST);
        known.renew(flow, flow.seen, now);
        let known = *known;
        let key = FlowKey { dport: known.sport, ..flow.key.reversed() };
        // "A reset by the client ends both". If the client goes on, neither ends.
        if let Some(reply) = self.tables.held(&key) {
            if was_reset && flow.goes_on() {
                reply.marks = reply.marks.without(Marks::RST);
            }
            reply.marks |= flow.told().and(Marks::RST | Marks::OTHER_FIN);
        }
        if is_new && self.confirm_reverse(&key, flow) {
            self.tables.conntrack.insert(through, known);
            self.tables.ct_new.remove(&through);
        }
        known.sport
    }

    /// Gives a flow another port, or one "that the client had through the same node before".
    fn remap(&mut self, flow: &Flow, node: Ipv4Addr) -> Result<u16, Reason> {
        // A packet in the middle of an unknown flow has no reverse path.
        if !flow.is_free() || flow.key.proto == SCTP {
            return Err(Reason::TupleTaken);
        }
        let own = (Action::Reverse, Some(node), flow.key.sport);
        for attempt in 1..=8 {
            let port = other_port(&self.tables.ids, &flow.key, attempt);
            let key = FlowKey { dport: port, ..flow.key.reversed() };
            if self.take(&key, attempt - 1, |old| (old.action, old.node, old.dport) == own) {
                let entry = self.reverse_entry(&key, flow, node);
                self.tables.ct_new.insert(key, entry);
                let FlowKey { src, dst, dport, .. } = flow.key;
                let action = Action::Forward;
                let forward = Entry { src, dst, sport: port, dport, action, ..entry };
                let through = FlowKey { through: Some(node), ..flow.key };
                self.tables.conntrack.remove(&through);
                self.tables.ct_new.insert(through, forward);
                return Ok(port);
            }
        }
        Err(Reason::TupleTaken)
    }

    /// Replies to the backend's view of the client go through `node`, to the client's own port.
    fn reverse_entry(&self, key: &FlowKey, flow: &Flow, node: Ipv4Addr) -> Entry {
        let unchanged = Entry::unchanged(key, Action::Reverse, self.now);
        Entry { dport: flow.key.sport, node: Some(node), marks: flow.told(), ..unchanged }
    }
}

/// Another source port: one of the dynamic range, by the tuple and the attempt.
fn other_port(ids: &AddressIds, key: &FlowKey, attempt: u32) -> u16 {
    let hash = hash::mix(ids.id(key.src).raw() ^ attempt, u32::from(key.sport.to_be()));
    49_152 + (hash % 16_384) as u16
}

/// The first octet of an IPv4 address; none of an IPv6 address.
pub fn first_octet(name: Name) -> Option<u8> {
    match name.ip {
        IpAddr::V4(ip) => Some(ip.octets()[0]),
        IpAddr::V6(_) => None,
    }
}
