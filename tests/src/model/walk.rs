//! A packet on its way, and the steps that the programs share.

use std::{collections::BTreeMap, net::IpAddr};

use overlay_common::{
    Mac, Reason,
    maps::{Counter, ENDPOINT_FLAG_HOST, ENDPOINT_LOCAL, Endpoint},
};

use super::{
    Host, Packet,
    bytes::{ETHERNET, Ethernet, TCP, UDP, bytes, put},
    host::NextHop,
    observe::Party,
    packet::Ip,
    state::{Entry, Tables},
};
use crate::rig::Told;

/// How a packet that is not dropped ends.
#[derive(Clone, Copy)]
pub enum End {
    /// The packet passes to the host.
    Pass,
    /// On its way, counted.
    Sent(Reason),
    /// The packet passes to the host and is counted.
    Left(Reason),
    /// Copied to its destinations and counted; the packet itself is not delivered.
    Copied(Reason),
}

/// How any packet ends.
pub type Outcome = Result<End, Reason>;

/// A packet, its surroundings and its effects so far.
pub struct Walk<'a> {
    /// The datapath's memory.
    pub tables: &'a mut Tables,
    /// The kernel's part.
    pub host: &'a Host,
    /// The time.
    pub now: u64,
    /// The interface that the packet came in by.
    pub ifindex: u32,
    /// Bytes of payload in each segment of an aggregate; 0 for a single packet.
    pub segment: usize,
    /// The present bytes of the packet.
    pub frame: Vec<u8>,
    /// The counters that changed.
    pub moved: BTreeMap<Reason, Counter>,
    /// The endpoint that it is counted for.
    pub party: Party,
    /// Index of the endpoint of this node that received the packet; 0 for another destination.
    pub delivered: u32,
    /// The counters of endpoints and networks that changed.
    pub told: Told,
}

impl<'a> Walk<'a> {
    /// A packet that has just come in.
    pub fn new(tables: &'a mut Tables, host: &'a Host, now: u64, packet: Packet<'_>) -> Self {
        Self {
            tables,
            host,
            now,
            ifindex: packet.ifindex,
            segment: packet.segment.into(),
            frame: packet.frame.to_vec(),
            moved: BTreeMap::new(),
            party: Party::none(),
            delivered: 0,
            told: Told::default(),
        }
    }

    /// Counts a packet.
    pub fn count(&mut self, reason: Reason, length: usize) {
        let counter = self.moved.entry(reason).or_default();
        counter.packets += 1;
        counter.bytes += length as u64;
    }

    /// The IP header behind the Ethernet header of a checked packet.
    pub fn ip(&self, ipv6: bool) -> Result<Ip, Reason> {
        Ip::at(&self.frame, ETHERNET, ipv6).ok_or(Reason::Truncated)
    }

    /// Length of the longest IP packet that this one, behind an Ethernet header, is on the wire.
    pub fn longest(&self) -> usize {
        let frame = &self.frame;
        if self.segment == 0 {
            return frame.len() - ETHERNET;
        }
        let (header, protocol) = match frame[ETHERNET] >> 4 {
            6 => (40, frame[ETHERNET + 6]),
            _ => (usize::from(frame[ETHERNET] & 15) * 4, frame[ETHERNET + 9]),
        };
        let transport = match protocol {
            UDP => Some(8),
            TCP => bytes(frame, ETHERNET + header + 12).map(|[byte]| usize::from(byte >> 4) * 4),
            _ => Some(0),
        };
        self.segment + transport.map_or(0, |transport| header + transport)
    }

    /// Into an endpoint of this node.
    pub fn deliver(
        &mut self,
        (endpoint, source): (&Endpoint, Mac),
        ipv6: bool,
        reason: Reason,
    ) -> Outcome {
        put(&mut self.frame, 0, &Ethernet::of_ip(source, endpoint.mac, ipv6).bytes());
        self.delivered = endpoint.counter;
        let to_host = endpoint.flags & ENDPOINT_FLAG_HOST != 0;
        Ok(End::Sent(if to_host { Reason::DeliveredHost } else { reason }))
    }

    /// Delivers a reply to its client, an endpoint of this node.
    pub fn deliver_reply(&mut self, entry: &Entry, to: IpAddr, reason: Reason) -> Outcome {
        let client = self.tables.endpoint(entry.vni, to);
        let client = client.filter(|e| e.kind == ENDPOINT_LOCAL).ok_or(Reason::NoEndpoint)?;
        self.deliver((&client, self.tables.mac_of(entry.src)), to.is_ipv6(), reason)
    }

    /// Addresses the packet to the next hop on the host's route to an address outside.
    pub fn route(&mut self, to: IpAddr) -> Result<(), Reason> {
        let total = self.longest();
        let hop = self.host.next_hop(&self.tables.config, to, total)?;
        self.address(&hop, to.is_ipv6());
        Ok(())
    }

    /// Writes the Ethernet header for a next hop.
    pub fn address(&mut self, hop: &NextHop, ipv6: bool) {
        let (src, dst) = hop.macs;
        put(&mut self.frame, 0, &Ethernet::of_ip(src, dst, ipv6).bytes());
    }
}
