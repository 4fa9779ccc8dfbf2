//! What is measured. A measurement is one run of traffic on one subject; it may yield several
//! cases, as a latency has a mean and a tail.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use overlay_common::Mac;

use super::{
    drive::Driven,
    flood::{Flooded, Received},
    frames::{self, Ends},
    report::Subject,
    rig::{self, Rig, Way},
    single::Single,
};
use crate::{Place as _, place::wait_listening, process};

/// A value of a case: name, unit, value.
pub type Value = (&'static str, &'static str, f64);

/// A measurement: its name for `--case`, and how it is done. No values where a subject has nothing
/// of the kind.
pub struct Measurement {
    /// Its name.
    pub name: &'static str,
    run: fn(&Rig, Subject) -> anyhow::Result<Vec<Value>>,
}

/// All of them.
pub const ALL: [Measurement; 12] = [
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
    Measurement { name: "flood_decap", run: flood },
    Measurement { name: "program_encap", run: encap },
    Measurement { name: "program_decap", run: decap },
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

/// MAC of an interface at a place.
fn mac_of(place: &rig::Spot, device: &str) -> anyhow::Result<[u8; 6]> {
    let output = place.exec("ip", &["-json", "link", "show", "dev", device])?;
    let links: serde_json::Value = output.json()?;
    let shown = links[0]["address"].as_str().context("no MAC")?;
    let bytes: Vec<u8> = shown
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{shown} is no MAC"))?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{shown} is no MAC"))
}

/// The frame of a container on host 2 to one on host 1.
fn inner(way: &Way, macs: ([u8; 6], [u8; 6])) -> anyhow::Result<Vec<u8>> {
    frames::datagram(&Ends { macs, addresses: way.addresses })
}

/// What arrives at host 1 when a container on host 2 sends a datagram; for the underlay, what
/// arrives is a tunnel packet that nobody takes apart.
fn arriving(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<u8>> {
    let way = rig.way(subject);
    let kernel = (rig::kernel_mac(2), rig::kernel_mac(1));
    let addresses = way.addresses;
    let (frame, port, vni) = match subject {
        Subject::Underlay => (inner(way, kernel)?, rig::KERNEL_PORT + 1, rig::KERNEL_VNI),
        Subject::KernelVxlan => (inner(way, kernel)?, rig::KERNEL_PORT, rig::KERNEL_VNI),
        Subject::Overlay => {
            let macs = [addresses.0, addresses.1].map(|ip| Mac::of_ip(ip.into()).bytes());
            (inner(way, (macs[0], macs[1]))?, rig::OVERLAY_PORT, rig.vni())
        }
    };
    let hosts = rig.way(Subject::Underlay);
    let outer = Ends {
        macs: (mac_of(&hosts.client, way.link)?, mac_of(&hosts.server, way.link)?),
        addresses: match subject {
            Subject::Overlay => (rig.cluster().host(2).address(), rig.cluster().host(1).address()),
            _ => hosts.addresses,
        },
    };
    frames::vxlan(&outer, port, vni, &frame)
}

fn file(rig: &Rig, name: &str, frame: &[u8]) -> anyhow::Result<PathBuf> {
    let path = rig.cluster().instance().dir.join(name);
    std::fs::write(&path, frame).context("write the frame")?;
    Ok(path)
}

fn flood(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let (way, hosts) = (rig.way(subject), rig.way(Subject::Underlay));
    let program = std::env::current_exe().context("the path of this program")?;
    let frame = file(rig, "flood", &arriving(rig, subject)?)?;
    // A veth takes XDP frames when its NAPI runs, which GRO turns on; off again for the others.
    let gro = |state| hosts.server.exec("ethtool", &["-K", way.link, "gro", state])?.success();
    gro("on")?;
    let outcome = (|| {
        let mut sink = way.server.spawn(&program, &["count", way.interface])?;
        wait_listening(&mut sink)?;
        let frame = frame.to_string_lossy();
        let args = ["flood", &frame, way.link];
        let flooded: Flooded = hosts.client.exec(&program.to_string_lossy(), &args)?.json()?;
        // What is still in a queue arrives.
        std::thread::sleep(Duration::from_millis(50));
        let printed = sink.stop()?.success()?.stdout;
        let line = printed.lines().last().context("the counter printed nothing")?;
        let received: Received = serde_json::from_str(line).context("the counter's report")?;
        Ok::<_, anyhow::Error>((flooded, received))
    })();
    gro("off")?;
    let (flooded, received) = outcome?;
    let packets = received.packets as f64;
    ensure!(packets > 0.0, "none of {} packets arrived", flooded.sent);
    Ok(vec![
        ("flood_decap", "million/s", packets / flooded.seconds / 1e6),
        ("flood_decap_arrived", "%", packets / flooded.sent as f64 * 100.0),
    ])
}

/// Times one program of the daemon on host 1.
fn single(rig: &Rig, program: &str, device: &str, frame: &[u8]) -> anyhow::Result<f64> {
    /// `TC_ACT_REDIRECT`
    const REDIRECT: &str = "7";
    let host = rig.cluster().host(1);
    let version = format!("v{}", overlay_common::LAYOUT_VERSION);
    let pin = host.dirs().pins.join(version).join("progs").join(program);
    let frame = file(rig, program, frame)?;
    let (pin, frame) = (pin.to_string_lossy(), frame.to_string_lossy());
    let bench = std::env::current_exe().context("the path of this program")?;
    let args = ["single", "tc", &pin, &frame, device, "--verdict", REDIRECT];
    let command = {
        let mut command = host.command(&bench);
        command.args(args);
        command
    };
    let single: Single = process::run(command)?.json()?;
    Ok(single.program.saturating_sub(single.empty) as f64)
}

fn encap(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    if subject != Subject::Overlay {
        return Ok(vec![]);
    }
    let way = rig.way(subject);
    let (client, server) = way.addresses;
    let macs = [server, client].map(|ip| Mac::of_ip(ip.into()).bytes());
    let ends = Ends { macs: (macs[0], macs[1]), addresses: (server, client) };
    let took = single(rig, "from_container", rig.server_link(), &frames::datagram(&ends)?)?;
    Ok(vec![("from_container_to_remote", "ns", took)])
}

fn decap(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    if subject != Subject::Overlay {
        return Ok(vec![]);
    }
    let frame = arriving(rig, subject)?;
    let took = single(rig, "from_underlay", rig.way(subject).link, &frame)?;
    Ok(vec![("from_underlay_to_local", "ns", took)])
}
