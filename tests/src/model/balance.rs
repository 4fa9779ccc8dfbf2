//! Which backend a new flow to a service gets, and how a service without one refuses it.

use overlay_common::{
    Be16, Reason, hash,
    maps::{
        Affinity, AffinityKey, BACKEND_ACTIVE, BACKEND_COUNTED, BACKEND_DOWN, Backend,
        BackendStats, BackendStatsKey, CONNTRACK_FORWARD, CONNTRACK_REPLY, Conntrack, ConntrackKey,
        SERVICE_RESETS, Service, SlotKey, TCP_SEEN_FIN, TCP_SEEN_RST, TableKey, VIA_VIP,
        VNI_FLAG_IPV6,
    },
};

use super::{
    Tables,
    conntrack::{Flow, Part, reversed},
    direct_return,
    frame::{Ethernet, Ip, TCP, UDP, bytes, ones_complement, put},
    icmp,
    walk::{End, Outcome, Target, Walk},
};

/// What became of a flow to a service.
pub enum Balanced {
    /// It has a backend.
    To(Conntrack, Backend),
    /// No backend takes it.
    Refused,
    /// Its backend has gone, and its client may be told.
    Lost,
}

impl Walk<'_> {
    /// The backend of a flow to a service, and the entry that translates to it.
    pub fn balance(
        &mut self,
        flow: &Flow,
        service: u32,
        (port, via): (Be16, u32),
    ) -> Result<Balanced, Reason> {
        let mut counted = Reason::FlowCreated;
        if let Some(entry) = self.find_action(flow, CONNTRACK_FORWARD) {
            // "Nothing is lost by leaving a backend on a node that is down, where the flow may."
            let stays = |b: &Backend| b.state != BACKEND_DOWN || !flow.is_free();
            if let Some(backend) =
                self.tables.agent.backends.get(&entry.backend).copied().filter(stays)
            {
                let end = TCP_SEEN_FIN | TCP_SEEN_RST;
                if flow.seen & end != 0 && entry.flags & end == 0 {
                    self.count_active(entry.backend, &backend, |flows| flows.saturating_sub(1));
                }
                return Ok(Balanced::To(entry, backend));
            }
            // "An entry whose backend was removed is given another backend at once for UDP and
            // for a new SYN."
            if !flow.is_free() {
                let service = self.tables.agent.services.get(&entry.service);
                let tells = service.is_some_and(|service| service.flags & SERVICE_RESETS != 0);
                return if tells { Ok(Balanced::Lost) } else { Err(Reason::BackendGone) };
            }
            counted = Reason::FlowRepicked;
        }
        if flow.part == Part::Quoted {
            return Err(Reason::UnrelatedError);
        }
        let picked = self.pick(flow, service);
        let known = picked.and_then(|number| Some((number, *self.backend(number)?)));
        let Some((number, backend)) = known else { return Ok(Balanced::Refused) };
        let timeouts = self.tables.agent.services.get(&service);
        let idle = timeouts.map_or(0, |service| match flow.key.proto {
            UDP => service.udp_idle,
            _ => service.tcp_idle,
        });
        // The backend is on the flow's side of its network.
        let side = backend.vni | flow.key.vni & VNI_FLAG_IPV6;
        let on_side = Backend { vni: side, ..backend };
        let via = via | direct_return::bit(self.tables, flow, service, &backend);
        let target = Target { service, port, number, backend: on_side, idle, via };
        let entry = self.create(flow, &target)?;
        self.count_active(number, &backend, |flows| flows.wrapping_add(1));
        self.count(counted, self.frame.len());
        if entry.backend != 0 {
            self.served(flow, &entry, flow.key.dport).flows += 1;
        }
        Ok(Balanced::To(entry, backend))
    }

    /// "What goes between clients and a backend is counted by the way that its service is asked."
    fn served(&mut self, flow: &Flow, entry: &Conntrack, port: Be16) -> &mut BackendStats {
        let port = if entry.flags & VIA_VIP == 0 { port } else { Be16::new(0) };
        let Conntrack { service, backend, .. } = *entry;
        let ipv6 = u8::from(flow.key.vni & VNI_FLAG_IPV6 != 0);
        let key = BackendStatsKey { service, backend, port, proto: flow.key.proto, ipv6 };
        self.tables.served.entry(key).or_default()
    }

    /// "The flow gets another source port if its replies would look like those of a translated one."
    pub fn open_direct(&mut self, flow: &Flow) -> Result<Option<Conntrack>, Reason> {
        let replies = reversed(flow.key);
        let Tables { conntrack, opening, .. } = &*self.tables;
        let taken = [conntrack.get(&replies), opening.get(&replies)]
            .iter()
            .any(|entry| entry.is_some_and(|entry| entry.action == CONNTRACK_REPLY));
        if !taken || !flow.is_free() || flow.part != Part::Whole {
            return Ok(None);
        }
        let ConntrackKey { daddr: ip, dport: port, vni, .. } = flow.key;
        let backend = Backend { vni, ip, ..Backend::default() };
        let target = Target { service: 0, port, number: 0, backend, idle: 0, via: 0 };
        self.create(flow, &target).map(Some)
    }

    /// Counts a client's packet as it is now.
    pub fn count_asked(&mut self, flow: &Flow, entry: &Conntrack) {
        if entry.backend == 0 {
            return;
        }
        let length = self.frame.len() as u64;
        let served = self.served(flow, entry, flow.key.dport);
        served.in_packets += 1;
        served.in_bytes += length;
    }

    /// Counts a backend's packet, of `length` bytes.
    pub fn count_answered(&mut self, flow: &Flow, entry: &Conntrack, length: usize) {
        if entry.backend == 0 {
            return;
        }
        let served = self.served(flow, entry, entry.sport);
        served.out_packets += 1;
        served.out_bytes += length as u64;
    }

    fn backend(&self, number: u32) -> Option<&Backend> {
        self.tables.agent.backends.get(&number)
    }

    /// "Of services that balance by them, flows are counted": those that begin and those that the
    /// client ends.
    fn count_active(&mut self, number: u32, backend: &Backend, change: impl Fn(u32) -> u32) {
        if backend.flags & BACKEND_COUNTED != 0
            && let Some(flows) = self.tables.active.get_mut(&number)
        {
            *flows = change(*flows);
        }
    }

    /// "A client keeps its backend until it has opened no flow for the time of the affinity."
    fn pick(&mut self, flow: &Flow, number: u32) -> Option<u32> {
        let service = *self.tables.agent.services.get(&number)?;
        if service.slots == 0 {
            return None;
        }
        if service.affinity == 0 {
            return self.schedule(flow, number, &service);
        }
        let client = AffinityKey { service: number, vni: flow.key.vni, client: flow.key.saddr };
        let seconds = u64::from(service.affinity);
        let fresh =
            |entry: &&Affinity| self.now.saturating_sub(entry.last_used) <= seconds * 1_000_000_000;
        let takes = |number: &u32| {
            self.backend(*number).is_some_and(|b| b.state == BACKEND_ACTIVE && b.weight > 0)
        };
        let kept = self.tables.affinity.get(&client).filter(fresh).map(|entry| entry.backend);
        let backend = match kept.filter(takes) {
            Some(kept) => kept,
            None => self.schedule(flow, number, &service)?,
        };
        let entry = Affinity { backend, pad: 0, last_used: self.now };
        self.tables.affinity.insert(client, entry);
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
        if service.table == 0 {
            return self.tables.agent.slots.get(&SlotKey { service: number, index }).copied();
        }
        let key = TableKey { service: number, table: service.table };
        self.tables.agent.tables.get(&key)?.fill().get(index as usize).copied()
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
        let load = |backend: u32| {
            let flows = self.tables.active.get(&backend).copied().unwrap_or(0);
            u128::from(flows) + 1
        };
        let weight = |backend| self.backend(backend).map_or(1, |b| u128::from(b.weight));
        Some(if load(a) * weight(b) <= load(b) * weight(a) { a } else { b })
    }

    fn client_hash(&self, flow: &Flow, service: &Service) -> u32 {
        let key = &flow.key;
        let is_ipv6 = key.vni & VNI_FLAG_IPV6 != 0;
        let client = if is_ipv6 { self.hashed6(key.saddr) } else { key.saddr };
        match service.hash {
            1 => hash::of_client_flow(client, [key.sport, key.dport], key.proto),
            _ => hash::of_client(client),
        }
    }
}

/// "A service without a backend refuses at once": TCP gets a reset (RFC 9293, section 3.10.7.1), UDP
/// an ICMP port unreachable, from the address that was asked. What may not be answered is dropped.
pub fn refuse(walk: &mut Walk<'_>, ip: &Ip, balanced: &Balanced) -> Outcome {
    if matches!(balanced, Balanced::Lost) {
        // "A connection whose backend has gone is reset", and of nothing else anybody is told.
        let told = ip.protocol == TCP && refuse_new(walk, ip).is_ok();
        let gone = End::Sent(Reason::BackendGoneAnswered);
        return if told { Ok(gone) } else { Err(Reason::BackendGone) };
    }
    refuse_new(walk, ip)
}

fn refuse_new(walk: &mut Walk<'_>, ip: &Ip) -> Outcome {
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    let source = ip.src.octets()[0];
    if ethernet.dst.is_group() || ip.later || source == 0 || source == 127 || source >= 224 {
        return Err(Reason::NoBackend);
    }
    if ip.protocol == TCP {
        return reset(walk, ip, ethernet);
    }
    icmp::port_unreachable(walk, (ethernet.dst, ip.dst))
}

fn reset(walk: &mut Walk<'_>, ip: &Ip, ethernet: Ethernet) -> Outcome {
    if !ip.is_plain() {
        return Err(Reason::NoBackend);
    }
    // An aggregate may say that there is more than there is.
    let segment: [u8; 20] = bytes(&walk.frame, ip.payload()).ok_or(Reason::Truncated)?;
    let mut tcp = reset_of(&segment, ip.total.saturating_sub(ip.header))?;
    let addresses = [ip.dst.octets(), ip.src.octets()].concat();
    let pseudo = [&addresses[..], &[0, TCP, 0, 20], &tcp].concat();
    put(&mut tcp, 16, &ones_complement(&pseudo).to_be_bytes());

    let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
    header.extend(addresses);
    let checksum = ones_complement(&header);
    put(&mut header, 10, &checksum.to_be_bytes());
    let back = Ethernet::ipv4(ethernet.dst, ethernet.src);
    walk.frame = [&back.bytes()[..], &header, &tcp].concat();
    Ok(End::Sent(Reason::NoBackendAnswered))
}

/// The header that answers a segment of so many bytes, without its checksum.
pub fn reset_of(segment: &[u8; 20], length: usize) -> Result<Vec<u8>, Reason> {
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
