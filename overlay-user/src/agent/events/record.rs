//! A record of the ring in words.

use std::{collections::BTreeMap, net::SocketAddr};

use jiff::{SignedDuration, Timestamp};
use overlay_common::{
    Be32, Direction, Reason, UNDERLAY_VNI,
    event::{self, EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW, FlowStart},
    observe::Traffic,
};

use crate::{
    agent::{
        clock::monotonic_ns,
        show::address_ids::{Numbers, Sockets, network},
        show::names::Names,
        show::words::ip,
    },
    api::{Event, EventKind, NewFlow},
    packet::{Headers, protocol_name},
};

/// The endpoint with a counter index: its network and address.
pub(super) type Owners = BTreeMap<u32, (u32, Be32)>;

/// A record of a program.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) kind: EventKind,
    pub(super) reason: Reason,
    /// The network, as far as it is known.
    pub(super) vni: u32,
    /// Network and address of the endpoint, if it is one.
    pub(super) owner: Option<(u32, Be32)>,
    header: event::Event,
    traffic: Option<Traffic>,
    payload: Vec<u8>,
    flow: Option<FlowStart>,
    sockets: Option<Sockets>,
    headers: Option<Headers>,
}

/// A plain value at the beginning of `bytes`.
fn read<T: overlay_common::Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as the type has, any of which are a valid value of a plain type.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

impl Record {
    /// Takes a record apart; `None` for one of another version's programs.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: event::Event = read(bytes)?;
        let payload = bytes.get(size_of::<event::Event>()..)?;
        let payload = payload.get(..header.captured as usize)?;
        let (kind, flow) = match header.kind {
            EVENT_DROP => (EventKind::Drop, None),
            EVENT_FLOW => (EventKind::Flow, Some(read::<FlowStart>(payload)?)),
            EVENT_CAPTURE => (EventKind::Capture, None),
            _ => return None,
        };
        Some(Self {
            kind,
            reason: Reason::from_index(header.reason.into())?,
            vni: network(header.vni),
            owner: None,
            header,
            traffic: if flow.is_some() { None } else { Traffic::from_index(header.traffic) },
            payload: if flow.is_some() { Vec::new() } else { payload.to_vec() },
            flow,
            sockets: None,
            headers: None,
        })
    }

    /// When, in ns of CLOCK_MONOTONIC.
    pub(super) fn time(&self) -> u64 {
        self.header.time
    }

    /// Finds the endpoint with the counter index, and reads the headers of the dropped packet.
    pub(super) fn locate(&mut self, owners: &Owners, vxlan_port: u16) {
        self.owner = owners.get(&self.header.counter).copied();
        if let Some((vni, _)) = self.owner {
            self.vni = vni;
        }
        if self.kind == EventKind::Drop {
            self.headers = Headers::read(&self.payload, Some(vxlan_port));
        }
    }

    /// Finds the addresses of a flow.
    pub(super) fn resolve(&mut self, numbers: &impl Numbers) {
        self.sockets = self.flow.map(|flow| Sockets::of(&flow.key, &flow.entry, numbers));
    }

    /// The headers that filters look at: the packet, the inner packet of a tunnel, and a flow
    /// before and after its translation.
    pub(super) fn packets(&self) -> Vec<Headers> {
        match (self.flow.zip(self.sockets), &self.headers) {
            (Some((flow, sockets)), _) => {
                let headers = |source: SocketAddr, destination: SocketAddr| Headers {
                    source: Some(source.ip()),
                    destination: Some(destination.ip()),
                    protocol: Some(flow.key.proto),
                    source_port: Some(source.port()),
                    destination_port: Some(destination.port()),
                    ..Headers::default()
                };
                let Sockets { source, destination, new_source, new_destination } = sockets;
                vec![headers(source, destination), headers(new_source, new_destination)]
            }
            (None, Some(headers)) => {
                let inner = headers.inner.as_deref().cloned();
                [headers.clone()].into_iter().chain(inner).collect()
            }
            (None, None) => Headers::read(&self.payload, None).into_iter().collect(),
        }
    }

    /// The event, with at most `snaplen` bytes of the packet.
    pub(super) fn event(&self, names: &Names, snaplen: usize) -> Event {
        let snaplen = if self.kind == EventKind::Capture { snaplen } else { usize::MAX };
        let packet = &self.payload[..self.payload.len().min(snaplen)];
        let interface = (self.header.ifindex != 0).then(|| names.interface(self.header.ifindex));
        Event {
            time: wall_clock(self.header.time),
            kind: self.kind,
            reason: self.reason.name().to_owned(),
            dropped: self.reason.direction() == Direction::Drop,
            traffic: self.traffic.map(|traffic| traffic.name().to_owned()),
            vni: self.vni,
            network: names.network(self.vni),
            endpoint: self.owner.and_then(|(vni, address)| names.endpoint(vni, address)),
            ip: self.owner.map(|(_, address)| ip(address)),
            interface,
            length: self.header.length,
            packet: hex(packet),
            headers: self.headers.clone(),
            flow: self
                .flow
                .zip(self.sockets)
                .map(|(flow, sockets)| new_flow(&flow, &sockets, names)),
        }
    }
}

fn new_flow(flow: &FlowStart, sockets: &Sockets, names: &Names) -> NewFlow {
    let FlowStart { key, entry, .. } = flow;
    let Sockets { source, destination, new_source, new_destination } = *sockets;
    let to = network(entry.vni);
    NewFlow {
        protocol: protocol_name(key.proto),
        source,
        destination,
        new_source,
        new_destination,
        service: names.service(entry.service),
        backend: names.backend(entry.backend),
        backend_network: if to == UNDERLAY_VNI { None } else { names.network(to) },
    }
}

/// A time of CLOCK_MONOTONIC on the clock on the wall, as that stands now.
fn wall_clock(monotonic: u64) -> Timestamp {
    let ago = monotonic_ns().saturating_sub(monotonic);
    let now = Timestamp::now();
    now.checked_sub(SignedDuration::from_nanos(i64::try_from(ago).unwrap_or(0))).unwrap_or(now)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
