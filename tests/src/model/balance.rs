//! Selects the backend of a new flow to a service, and counts the flow's packets.

use overlay_common::{
    Be16, Be32, Ip6, Reason, UNDERLAY_VNI, hash,
    maps::{
        BACKEND_ACTIVE, BACKEND_COUNTED, BACKEND_DOWN, Backend, SERVICE_DSR, SERVICE_RESETS,
        Service, SlotKey, TableKey,
    },
};

use super::{
    bytes::UDP,
    packet::{Flow, Part},
    state::{Action, Affinity, AffinityKey, Entry, Marks, Name, Stats, StatsKey},
    walk::Walk,
};

/// The destination of a service's packet.
pub struct Target {
    /// The service's number.
    pub service: u32,
    /// The backend's number.
    pub number: u32,
    /// The backend's network.
    pub vni: u32,
    /// The backend's address.
    pub backend: Name,
    /// The backends' port.
    pub port: u16,
    /// How long the flow may be idle, in seconds; 0 by default.
    pub idle: u16,
    /// The first marks of the entry: [`Marks::VIP`] and [`Marks::DSR`].
    pub marks: Marks,
}

/// The result of balancing a flow to a service.
pub enum Balanced {
    /// It has a backend.
    To(Entry, Backend),
    /// No backend accepts it.
    Rejected,
    /// Its backend is stale, and its client may get a reset.
    Lost,
}

impl Walk<'_> {
    /// The backend of a flow to a service, and the entry that translates to it.
    pub fn balance(
        &mut self,
        flow: &Flow,
        number: u32,
        (port, marks): (u16, Marks),
    ) -> Result<Balanced, Reason> {
        let mut counted = Reason::FlowCreated;
        if let Some(entry) = self.find_action(flow, Action::Forward) {
            // "Nothing is lost by leaving a backend on a node that is down, where the flow may."
            let stays = |b: &Backend| b.state != BACKEND_DOWN || !flow.is_free();
            if let Some(backend) = self.tables.backend(entry.backend).filter(stays) {
                if flow.seen.any(Marks::FIN | Marks::RST) && !entry.has_ended() {
                    self.count_active(entry.backend, &backend, |flows| flows.saturating_sub(1));
                }
                return Ok(Balanced::To(entry, backend));
            }
            // "An entry whose backend was removed is given another backend at once for UDP and
            // for a new SYN."
            if !flow.is_free() {
                let service = self.tables.service(entry.service);
                let tells = service.is_some_and(|service| service.flags & SERVICE_RESETS != 0);
                return if tells { Ok(Balanced::Lost) } else { Err(Reason::BackendGone) };
            }
            counted = Reason::FlowRepicked;
        }
        if flow.part == Part::Quoted {
            return Err(Reason::UnrelatedError);
        }
        let picked = self.pick(flow, number);
        let known = picked.and_then(|number| Some((number, self.tables.backend(number)?)));
        let Some((picked, backend)) = known else { return Ok(Balanced::Rejected) };
        let service = self.tables.service(number).unwrap_or_default();
        let is_udp = flow.key.proto == UDP;
        // "Of a service that says so, from a client outside to a backend elsewhere."
        let is_elsewhere = flow.key.vni == UNDERLAY_VNI && backend.node != Be32::ZERO;
        let is_dsr = service.flags & SERVICE_DSR != 0 && is_elsewhere;
        let target = Target {
            service: number,
            number: picked,
            vni: backend.vni,
            backend: self.tables.backend_name(&backend, flow.key.is_ipv6()),
            port,
            idle: if is_udp { service.udp_idle } else { service.tcp_idle },
            marks: marks | if is_dsr { Marks::DSR } else { Marks::default() },
        };
        let entry = self.create(flow, &target)?;
        self.count_active(picked, &backend, |flows| flows.wrapping_add(1));
        self.count(counted, self.frame.len());
        if let Some(stats) = self.stats(flow, &entry, flow.key.dport) {
            stats.flows += 1;
        }
        Ok(Balanced::To(entry, backend))
    }

    /// "The flow gets another source port if its replies would look like those of a translated
    /// one."
    pub fn open_direct(&mut self, flow: &Flow) -> Result<Option<Entry>, Reason> {
        let replies = flow.key.reversed();
        let tables = [&self.tables.conntrack, &self.tables.ct_new];
        let is_reply = |entry: &Entry| entry.action == Action::Reply;
        let taken = tables.iter().any(|table| table.get(&replies).is_some_and(is_reply));
        if !taken || !flow.is_free() || flow.part != Part::Whole {
            return Ok(None);
        }
        let target = Target {
            service: 0,
            number: 0,
            vni: flow.key.vni,
            backend: flow.key.dst,
            port: flow.key.dport,
            idle: 0,
            marks: Marks::default(),
        };
        self.create(flow, &target).map(Some)
    }

    /// "What goes between clients and a backend is counted by the way that its service is asked."
    fn stats(&mut self, flow: &Flow, entry: &Entry, port: u16) -> Option<&mut Stats> {
        let Entry { service, backend, .. } = *entry;
        let (proto, ipv6) = (flow.key.proto, flow.key.is_ipv6());
        let port = if entry.marks.any(Marks::VIP) { 0 } else { port };
        let key = StatsKey { service, backend, port, proto, ipv6 };
        (backend != 0).then(|| self.tables.stats.entry(key).or_default())
    }

    /// Counts a client's packet with its present length.
    pub fn count_received(&mut self, flow: &Flow, entry: &Entry) {
        let length = self.frame.len() as u64;
        if let Some(stats) = self.stats(flow, entry, flow.key.dport) {
            stats.received = [stats.received[0] + 1, stats.received[1] + length];
        }
    }

    /// Counts a backend's packet, of `length` bytes.
    pub fn count_sent(&mut self, flow: &Flow, entry: &Entry, length: usize) {
        if let Some(stats) = self.stats(flow, entry, entry.sport) {
            stats.sent = [stats.sent[0] + 1, stats.sent[1] + length as u64];
        }
    }

    /// "Of services that balance by them, flows are counted": new ones, and those that the client
    /// ends.
    fn count_active(&mut self, number: u32, backend: &Backend, change: impl Fn(u32) -> u32) {
        if backend.flags & BACKEND_COUNTED != 0
            && let Some(flows) = self.tables.active.get_mut(&number)
        {
            *flows = change(*flows);
        }
    }

    /// "A client keeps its backend until it has opened no flow for the time of the affinity."
    fn pick(&mut self, flow: &Flow, number: u32) -> Option<u32> {
        let service = self.tables.service(number).filter(|service| service.slots != 0)?;
        if service.affinity == 0 {
            return self.schedule(flow, number, &service);
        }
        let client = AffinityKey { service: number, vni: flow.key.vni, client: flow.key.src };
        let time = u64::from(service.affinity) * 1_000_000_000;
        let fresh = |kept: &&Affinity| self.now.saturating_sub(kept.last_used) <= time;
        let takes = |number: &u32| {
            let backend = self.tables.backend(*number);
            backend.is_some_and(|b| b.state == BACKEND_ACTIVE && b.weight > 0)
        };
        let kept = self.tables.affinity.get(&client).filter(fresh).map(|kept| kept.backend);
        let backend = match kept.filter(takes) {
            Some(kept) => kept,
            None => self.schedule(flow, number, &service)?,
        };
        self.tables.affinity.insert(client, Affinity { backend, last_used: self.now });
        Some(backend)
    }

    fn schedule(&mut self, flow: &Flow, number: u32, service: &Service) -> Option<u32> {
        match service.scheduler {
            // Source hash and Maglev.
            3 | 4 => {
                let hash = self.client_hash(flow, service);
                self.slot(number, service, hash % service.slots)
            }
            2 => self.less_loaded(flow, number, service),
            _ => {
                let turn = self.turn(number);
                self.slot(number, service, turn % service.slots)
            }
        }
    }

    /// How many picks there were before this one.
    fn turn(&mut self, number: u32) -> u32 {
        let Some(cursor) = self.tables.cursors.get_mut(&number) else { return 0 };
        let turn = *cursor;
        *cursor = cursor.wrapping_add(1);
        turn
    }

    fn slot(&self, number: u32, service: &Service, index: u32) -> Option<u32> {
        let agent = &self.tables.agent;
        if service.table == 0 {
            return agent.slots.get(&SlotKey { service: number, index }).copied();
        }
        let key = TableKey { service: number, table: service.table };
        agent.tables.get(&key)?.fill().get(index as usize).copied()
    }

    /// "Of two backends at random, the one with fewer flows for its weight."
    fn less_loaded(&mut self, flow: &Flow, number: u32, service: &Service) -> Option<u32> {
        let turn = self.turn(number);
        let chance = hash::mix(self.client_hash(flow, service), turn);
        let first = chance % service.slots;
        // 2^32 by the golden ratio.
        let second = hash::mix(chance, 2_654_435_769) % service.slots;
        let second = if second == first { (first + 1) % service.slots } else { second };
        let a = self.slot(number, service, first)?;
        let Some(b) = self.slot(number, service, second) else { return Some(a) };
        let load =
            |backend: u32| u128::from(self.tables.active.get(&backend).copied().unwrap_or(0)) + 1;
        let weight = |number| self.tables.backend(number).map_or(1, |b| u128::from(b.weight));
        Some(if load(a) * weight(b) <= load(b) * weight(a) { a } else { b })
    }

    /// "What schedulers hash of a client outside is its address", and not its number.
    fn client_hash(&self, flow: &Flow, service: &Service) -> u32 {
        let key = &flow.key;
        let client = match key.src.ip {
            std::net::IpAddr::V6(ip) if key.src.outside => hash::of_node(&Ip6::from(ip)),
            _ => self.tables.ids.id(key.src),
        };
        match service.hash {
            1 => {
                let ports = [Be16::new(key.sport), Be16::new(key.dport)];
                hash::of_client_flow(client, ports, key.proto)
            }
            _ => hash::of_client(client),
        }
    }
}
