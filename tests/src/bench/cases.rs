//! The measurements. A measurement is one run of traffic on one subject. It may yield several
//! cases, as a latency has a mean and a tail.

use std::process::Command;

use anyhow::Context as _;
use overlay_common::Mac;

use super::{
    drive::Driven,
    flat,
    floods::{self, arriving, file},
    frames::{self, Ends},
    report::Subject,
    rig::Rig,
    single::Single,
};
use crate::{Place as _, process};

/// A value of a case: name, unit, value.
pub type Value = (&'static str, &'static str, f64);

/// A measurement: its name for `--case`, and its function. It returns no values if a subject has no
/// such path.
pub struct Measurement {
    /// Its name.
    pub name: &'static str,
    run: fn(&Rig, Subject) -> anyhow::Result<Vec<Value>>,
}

/// All of them.
pub const ALL: [Measurement; 15] = [
    Measurement { name: "tcp_1", run: |rig, on| stream(rig, on, "tcp_1_stream", 1, 128 * 1024) },
    Measurement { name: "tcp_4", run: |rig, on| stream(rig, on, "tcp_4_streams", 4, 128 * 1024) },
    Measurement {
        name: "tcp_1400",
        run: |rig, on| stream(rig, on, "tcp_1400_byte_writes", 1, 1400),
    },
    Measurement { name: "udp_64", run: |rig, on| datagrams(rig, on, "udp_64", 64) },
    Measurement { name: "udp_512", run: |rig, on| datagrams(rig, on, "udp_512", 512) },
    Measurement { name: "udp_1400", run: |rig, on| datagrams(rig, on, "udp_1400", 1400) },
    Measurement { name: "tcp_rr", run: tcp_echo },
    Measurement { name: "udp_rr", run: udp_echo },
    Measurement { name: "connect", run: connect },
    Measurement { name: "flood_encap", run: floods::encap },
    Measurement { name: "flood_decap", run: floods::decap },
    Measurement { name: "flood_decap_xdp", run: floods::decap_xdp },
    Measurement { name: "program_encap", run: encap },
    Measurement { name: "program_decap", run: decap },
    Measurement { name: "flat", run: flatness },
];

impl Measurement {
    /// One round on one subject.
    ///
    /// # Errors
    /// If the traffic does not get through.
    pub fn run(&self, rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
        (self.run)(rig, subject).with_context(|| format!("{} on {subject:?}", self.name))
    }
}

/// Runs the traffic program at the client's place.
fn drive(rig: &Rig, subject: Subject, traffic: &[&str]) -> anyhow::Result<Driven> {
    let way = rig.way(subject);
    let program = std::env::current_exe().context("the path of this program")?;
    let server = way.addresses.1.to_string();
    let args = [&["drive", traffic[0], &server], &traffic[1..]].concat();
    way.client.exec(&program.to_string_lossy(), &args)?.json()
}

fn stream(
    rig: &Rig,
    subject: Subject,
    name: &'static str,
    streams: usize,
    size: usize,
) -> anyhow::Result<Vec<Value>> {
    let (streams, size) = (streams.to_string(), size.to_string());
    let args = ["stream", "--streams", &streams, "--size", &size, "--milliseconds", "1500"];
    let driven = drive(rig, subject, &args)?;
    let bytes = driven.arrived as f64;
    let mut values = vec![(name, "Gbit/s", bytes * 8.0 / driven.seconds / 1e9)];
    if name == "tcp_1_stream" {
        let gibibytes = bytes / f64::from(1 << 30);
        values.push(("tcp_1_stream_cpu", "CPU s/GiB", driven.cpu_seconds / gibibytes));
    }
    Ok(values)
}

fn datagrams(
    rig: &Rig,
    subject: Subject,
    name: &'static str,
    size: usize,
) -> anyhow::Result<Vec<Value>> {
    let driven = drive(rig, subject, &["datagrams", "--size", &size.to_string()])?;
    let packets = driven.arrived as f64;
    let mut values = vec![(name, "thousand/s", packets / driven.seconds / 1e3)];
    if name == "udp_64" {
        values.push(("udp_64_cpu", "CPU s/million", driven.cpu_seconds / packets * 1e6));
    }
    Ok(values)
}

fn tcp_echo(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let driven = drive(rig, subject, &["tcp-echo"])?;
    Ok(vec![
        ("tcp_rr_mean", "us", driven.mean / 1e3),
        ("tcp_rr_p50", "us", driven.p50 as f64 / 1e3),
        ("tcp_rr_p99", "us", driven.p99 as f64 / 1e3),
    ])
}

fn udp_echo(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let driven = drive(rig, subject, &["udp-echo"])?;
    Ok(vec![
        ("udp_rr_mean", "us", driven.mean / 1e3),
        ("udp_rr_p50", "us", driven.p50 as f64 / 1e3),
        ("udp_rr_p99", "us", driven.p99 as f64 / 1e3),
    ])
}

fn connect(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let driven = drive(rig, subject, &["connect"])?;
    Ok(vec![("connect", "thousand/s", driven.arrived as f64 / driven.seconds / 1e3)])
}

/// Times one program of the daemon on host 1, which must forward the frame.
pub fn single(
    rig: &Rig,
    (kind, program): (&str, &str),
    device: &str,
    frame: &[u8],
) -> anyhow::Result<f64> {
    // `TC_ACT_REDIRECT` and `XDP_REDIRECT`.
    let verdict = if kind == "tc" { "7" } else { "4" };
    let host = rig.cluster().host(1);
    let pin = rig.pinned("progs", program);
    let frame = file(rig, program, frame)?;
    let (pin, frame) = (pin.to_string_lossy(), frame.to_string_lossy());
    let bench = std::env::current_exe().context("the path of this program")?;
    let args = ["single", kind, &pin, &frame, device, "--verdict", verdict];
    let command = {
        let mut command = host.command(&bench);
        command.args(args);
        command
    };
    let single: Single = process::run(command)?.json()?;
    Ok(single.program - single.empty)
}

fn encap(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    if subject != Subject::Overlay {
        return Ok(vec![]);
    }
    let way = rig.way(subject);
    let (client, server) = way.addresses;
    let macs = [server, client].map(|ip| Mac::of_ip(ip.into()).bytes());
    let ends = Ends { macs: (macs[0], macs[1]), addresses: (server, client) };
    let took = single(rig, ("tc", "from_container"), rig.server_link(), &frames::datagram(&ends)?)?;
    Ok(vec![("from_container_to_remote", "ns", took)])
}

fn decap(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    if subject != Subject::Overlay {
        return Ok(vec![]);
    }
    let frame = arriving(rig, subject)?;
    let took = single(rig, ("tc", "from_underlay"), rig.way(subject).link, &frame)?;
    Ok(vec![("from_underlay_to_local", "ns", took)])
}

/// Single runs beside few and many endpoints, in their own process and namespace.
fn flatness(_: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    if subject != Subject::Overlay {
        return Ok(vec![]);
    }
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.arg("flat");
    let measured: Vec<f64> = process::run(command)?.json()?;
    Ok(flat::NAMES.into_iter().zip(measured).map(|(name, took)| (name, "ns", took)).collect())
}
