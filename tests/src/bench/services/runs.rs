//! The cost of a packet to a service: single runs of the programs on their own maps, minus the cost
//! of a program that does nothing.

use std::{net::Ipv4Addr, process::ExitCode};

use anyhow::ensure;
use overlay::datapath::{DatapathState, Filling, LbTable};
use overlay_common::{
    Be16, Be32,
    maps::{
        BACKEND_ACTIVE, BACKEND_COUNTED, Backend, CONNTRACK_FORWARD, CONNTRACK_REPLY, Conntrack,
        ConntrackKey, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, ENDPOINT_REMOTE,
        ENDPOINT_SERVICE, Endpoint, EndpointKey, LB_HASH_FLOW, LB_LEAST, LB_MAGLEV, LB_ROUND_ROBIN,
        LB_SOURCE_HASH, LB_WEIGHTED, Service, SlotKey, TableKey,
    },
    wire::PROTO_TCP,
};

use super::super::{
    kernel::{self, ProgramType},
    pin,
    stats::middle_mean,
};
use crate::rig::{
    CLIENT, IFINDEX, NODE, PASS, PEER, REDIRECT, Rig, VNI, XDP_REDIRECT, mac,
    packets::{Tcp, tcp, tcp_from_client, vxlan},
};

/// Runs of each case.
const RUNS: u32 = 20_000;
/// Entries of conntrack.
const ENTRIES: u32 = 1_000_000;
/// The client.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// A service's port on the node.
const PORT: u16 = 8080;

/// Name and nanoseconds of a case.
pub type Took = (String, f64);

/// The VIP of a service.
fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 2, 0, 0)) + service)
}

/// The address of a backend, which are all on one other node.
fn far(backend: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + backend)
}

/// A scheduler: its name, its number and the table that it picks from.
type Scheduler = (&'static str, u8, Option<Filling>);

const SCHEDULERS: [Scheduler; 5] = [
    ("rr", LB_ROUND_ROBIN, None),
    ("wrr", LB_WEIGHTED, Some(Filling::Turns)),
    ("lc", LB_LEAST, None),
    ("sh", LB_SOURCE_HASH, Some(Filling::Turns)),
    ("maglev", LB_MAGLEV, Some(Filling::Maglev)),
];

/// Services 1 to `services` with the same `backends` backends each.
fn serve(state: &mut DatapathState, (services, backends): (u32, u32), scheduler: Scheduler) {
    let (_, number, filling) = scheduler;
    for backend in 1..=backends {
        let ip = far(backend);
        let (ip, mac, node) = (ip.into(), mac(ip), PEER.into());
        let (weight, flags) = (1, BACKEND_COUNTED * u16::from(number == LB_LEAST));
        let state_of = BACKEND_ACTIVE;
        state.backends.insert(
            backend,
            Backend {
                vni: VNI,
                ip,
                node,
                mac,
                state: state_of,
                weight,
                flags,
                ..Backend::default()
            },
        );
        let flags = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
        let endpoint = Endpoint { kind: ENDPOINT_REMOTE, flags, mac, node, ..Endpoint::default() };
        state.endpoints.insert(EndpointKey { vni: VNI, ip }, endpoint);
    }
    let weights: Vec<(u32, u16)> = (1..=backends)
        .map(|n| (n, if number == LB_WEIGHTED { 1 + n as u16 % 3 } else { 1 }))
        .collect();
    let table = filling.map(|filling| LbTable::new(filling, &weights));
    for service in 1..=services {
        let ip = vip(service);
        let mut made = Service { vni: VNI, vip: ip.into(), slots: backends, ..Service::default() };
        (made.scheduler, made.hash) = (number, LB_HASH_FLOW);
        match &table {
            Some(table) => {
                (made.table, made.slots) = (table.digest(), table.size());
                state.tables.insert(TableKey { service, table: table.digest() }, table.clone());
            }
            None => {
                let slots = (1..=backends).map(|n| (SlotKey { service, index: n - 1 }, n));
                state.slots.extend(slots);
            }
        }
        state.services.insert(service, made);
        let endpoint =
            Endpoint { kind: ENDPOINT_SERVICE, mac: mac(ip), service, ..Endpoint::default() };
        state.endpoints.insert(EndpointKey { vni: VNI, ip: ip.into() }, endpoint);
    }
}

fn rig(sizes: (u32, u32), scheduler: Scheduler) -> Rig {
    let mut rig = Rig::with_conntrack(ENTRIES);
    rig.network(VNI, 1);
    rig.local(VNI, HERE, 0, true);
    rig.node(PEER, &[VNI]);
    rig.set(|state| serve(state, sizes, scheduler));
    rig
}

/// Nanoseconds of a program on packet after packet, each of which must have this verdict.
fn time(
    rig: &mut Rig,
    (program, verdict): (&str, u32),
    packet: impl Fn(u32) -> Vec<u8>,
) -> anyhow::Result<f64> {
    let is_xdp = program == "xdp_underlay";
    let empty = kernel::empty(if is_xdp { ProgramType::Xdp } else { ProgramType::Tc })?;
    let (mut took, mut nothing) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let frame = packet(run);
        let (got, nanoseconds) = rig.time(program, &frame);
        ensure!(got == verdict, "{program} gave verdict {got} and not {verdict}");
        took.push(nanoseconds);
        let none = match is_xdp {
            true => kernel::run_xdp(&empty, &frame)?,
            false => kernel::run_tc(&empty, &frame, IFINDEX)?,
        };
        nothing.push(u64::from(none.1));
    }
    Ok(middle_mean(&mut took) - middle_mean(&mut nothing))
}

/// A new flow each time, to one service after another. All of their `backends` have had one before
/// (by hash, most of them): the first makes the counters of a backend, once and for all.
fn new_flows(rig: &mut Rig, (services, backends): (u32, u32)) -> anyhow::Result<f64> {
    // Each flow has its own port: with one port, flows to common backends would have the same
    // tuple.
    let spare = (1_024..10_000).chain(51_000..=u16::MAX);
    for (turn, port) in (0..services * backends).zip(spare) {
        let syn = tcp((HERE, port), (vip(1 + turn % services), 80), Tcp::Syn);
        let opened = rig.time("from_container", &syn).0;
        ensure!(opened == REDIRECT, "a first flow gets verdict {opened}");
    }
    time(rig, ("from_container", REDIRECT), |run| {
        tcp((HERE, 10_000 + run as u16), (vip(1 + run % services), 80), Tcp::Syn)
    })
}

/// Lets backends answer new flows, so that the client's next packet finds a flow in use.
fn answer(rig: &mut Rig) {
    for (key, entry) in rig.flows("ct_new") {
        if entry.action == CONNTRACK_REPLY {
            let (from, to) =
                ((key.saddr.into(), key.sport.get()), (key.daddr.into(), key.dport.get()));
            rig.time("from_underlay", &vxlan(VNI, &tcp(from, to, Tcp::SynAck)));
        }
    }
}

/// Packets of one flow to each of the first services.
fn established(rig: &mut Rig, services: u32) -> anyhow::Result<f64> {
    // Each service has its own client port: with one port, flows to their common backend would have
    // the same tuple.
    let from = |service: u32| (HERE, 40_000 + service as u16);
    let packet = |service: u32, flags| tcp(from(service), (vip(service), 80), flags);
    for service in 1..=services {
        let opened = rig.time("from_container", &packet(service, Tcp::Syn)).0;
        ensure!(opened == REDIRECT, "a new flow to service {service} gets verdict {opened}");
        answer(rig);
        rig.time("from_container", &packet(service, Tcp::Data));
    }
    // A step that has no common factor with any number of services, and leads to no neighbour in
    // memory.
    let service = |run: u32| 1 + run.wrapping_mul(61_803) % services;
    time(rig, ("from_container", REDIRECT), |run| packet(service(run), Tcp::Data))
}

/// Runs all cases and prints [`Took`] of each.
///
/// # Errors
/// If a program does not send a packet on.
pub fn main() -> anyhow::Result<ExitCode> {
    pin::to_cpu(pin::CLIENT_CPU, pin::Side::Client)?;
    let mut took: Vec<Took> = Vec::new();
    paths(&mut took)?;
    for scheduler in SCHEDULERS {
        for backends in [2, 100, 1_000] {
            let mut rig = rig((1, backends), scheduler);
            let name = format!("new_flow_{}_{backends}_backends", scheduler.0);
            took.push((name, new_flows(&mut rig, (1, backends))?));
        }
    }
    for services in [1, 1_000, 10_000] {
        let mut rig = rig((services, 2), SCHEDULERS[0]);
        took.push((
            format!("established_all_of_{services}_services"),
            established(&mut rig, services)?,
        ));
        took.push((
            format!("new_flow_all_of_{services}_services"),
            new_flows(&mut rig, (services, 2))?,
        ));
    }
    for percent in [1, 90] {
        let mut rig = rig((1, 100), SCHEDULERS[0]);
        rig.fill_conntrack((0..ENTRIES / 100 * percent).map(nobodys));
        took.push((format!("established_conntrack_{percent}_percent"), established(&mut rig, 1)?));
        took.push((
            format!("new_flow_conntrack_{percent}_percent"),
            new_flows(&mut rig, (1, 100))?,
        ));
    }
    println!("{}", serde_json::to_string(&took)?);
    Ok(ExitCode::SUCCESS)
}

/// The ways of a packet with one service, and the same way without one.
fn paths(took: &mut Vec<Took>) -> anyhow::Result<()> {
    let mut rig = rig((1, 1), SCHEDULERS[0]);
    let data = |to: Ipv4Addr| move |_| tcp((HERE, 9_000), (to, 80), Tcp::Data);
    let direct = time(&mut rig, ("from_container", REDIRECT), data(far(1)))?;
    took.push(("no_service_to_remote".to_owned(), direct));
    took.push(("established_vip_to_remote".to_owned(), established(&mut rig, 1)?));
    let reply = vxlan(VNI, &tcp((far(1), 80), (HERE, 40_001), Tcp::Data));
    let back = time(&mut rig, ("from_underlay", REDIRECT), |_| reply.clone())?;
    took.push(("reply_vip_from_remote".to_owned(), back));

    rig.publish(PROTO_TCP, PORT, 1, 80);
    let client = |port: u16, flags| tcp_from_client((CLIENT, 9_000), (NODE, port), flags);
    let opened = rig.time("from_underlay", &client(PORT, Tcp::Syn)).0;
    ensure!(opened == REDIRECT, "a client outside gets verdict {opened}");
    answer(&mut rig);
    rig.time("from_underlay", &client(PORT, Tcp::Data));
    for (name, program, verdict) in [
        ("established_published_to_remote", "from_underlay", REDIRECT),
        ("established_published_to_remote_xdp", "xdp_underlay", XDP_REDIRECT),
    ] {
        let data = time(&mut rig, (program, verdict), |_| client(PORT, Tcp::Data))?;
        took.push((name.to_owned(), data));
    }
    let new = time(&mut rig, ("from_underlay", REDIRECT), |run| {
        tcp_from_client((CLIENT, 10_000 + run as u16), (NODE, PORT), Tcp::Syn)
    })?;
    took.push(("new_flow_published_to_remote".to_owned(), new));
    let other = time(&mut rig, ("from_underlay", PASS), |_| client(PORT + 1, Tcp::Data))?;
    took.push(("published_port_miss".to_owned(), other));
    Ok(())
}

/// A flow that no packet is of.
fn nobodys(number: u32) -> (ConntrackKey, Conntrack) {
    let key = ConntrackKey {
        saddr: Be32::new(0x0a09_0000 + (number >> 14)),
        daddr: vip(1).into(),
        sport: Be16::new(1 + (number & 0x3fff) as u16),
        dport: Be16::new(80),
        vni: VNI,
        proto: PROTO_TCP,
        ..ConntrackKey::default()
    };
    let entry = Conntrack {
        saddr: key.saddr,
        daddr: far(1).into(),
        sport: key.sport,
        dport: key.dport,
        vni: VNI,
        service: 1,
        backend: 1,
        action: CONNTRACK_FORWARD,
        ..Conntrack::default()
    };
    (key, entry)
}
