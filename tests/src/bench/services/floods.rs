//! Packets through a published port to a backend elsewhere, as fast as possible and as fast as
//! possible without loss. They arrive on the ingress node's link and leave by it, through the
//! tunnel, and are counted and dropped where they arrive.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, ensure};

use super::{
    super::{
        flood::{Flooded, Received},
        floods::{mac_of, set},
        frames::{self, Ends},
        lossless::{self, Trial},
        receive::Threads,
        rig::Spot,
        serve,
    },
    cases::Value,
    report::Subject,
    rig::Rig,
    routed,
};
use crate::{Place as _, place::wait_listening};

/// The other end of the ingress node's link and that node, the interface of each, the client's
/// address and the frontend's.
struct Link<'a> {
    from: Spot,
    asked: Spot,
    device: &'a str,
    addresses: (Ipv4Addr, Ipv4Addr),
}

fn link(rig: &Rig, subject: Subject) -> Option<Link<'static>> {
    match subject {
        // Nobody has a port published without a service.
        Subject::Direct => None,
        Subject::Nftables | Subject::Ipvs => Some(Link {
            from: rig.routed().nodes[0].clone(),
            asked: rig.routed().nodes[1].clone(),
            device: "wire",
            addresses: (Ipv4Addr::new(172, 31, 0, 200), routed::NODE),
        }),
        Subject::Overlay => {
            let [h1, h2] = [rig.cluster().host(1), rig.cluster().host(2)];
            Some(Link {
                from: Spot::of(h1),
                asked: Spot::of(h2),
                device: "eth0",
                addresses: (Ipv4Addr::new(172, 16, 1, 200), h2.address()),
            })
        }
    }
}

/// The function that measures the packets. It returns values under names that begin with that of
/// the case.
type Run = fn(&Rig, &Link<'_>, bool, &str) -> anyhow::Result<Vec<Value>>;

/// A million packets, as fast as they go.
///
/// # Errors
/// If nothing arrives.
pub fn by_tc(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    through_tc(rig, subject, as_fast_as_they_go, "published_flood")
}

/// Like [`by_tc`], with native XDP on the ingress node's interface.
///
/// # Errors
/// If nothing arrives, or not by XDP.
pub fn by_xdp(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    through_xdp(rig, subject, as_fast_as_they_go, "published_flood_xdp")
}

/// The highest rate at which none is lost.
///
/// # Errors
/// There is no such rate.
pub fn lossless_by_tc(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    through_tc(rig, subject, without_loss, "published_lossless")
}

/// Like [`lossless_by_tc`], with native XDP on the ingress node's interface.
///
/// # Errors
/// There is no such rate, or no packet goes by XDP.
pub fn lossless_by_xdp(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    through_xdp(rig, subject, without_loss, "published_lossless_xdp")
}

/// Through TC, nftables or IPVS.
fn through_tc(rig: &Rig, subject: Subject, run: Run, name: &str) -> anyhow::Result<Vec<Value>> {
    link(rig, subject).map_or(Ok(vec![]), |link| run(rig, &link, false, name))
}

fn through_xdp(rig: &Rig, subject: Subject, run: Run, name: &str) -> anyhow::Result<Vec<Value>> {
    let Some(link) = link(rig, subject) else { return Ok(vec![]) };
    if subject != Subject::Overlay {
        return run(rig, &link, false, name);
    }
    let host = rig.cluster().host(2);
    let version = format!("v{}", overlay_common::LAYOUT_VERSION);
    let program = host.dirs().pins.join(version).join("progs/xdp_underlay");
    let xdp = |args: &[&str]| {
        let line = [&["link", "set", "dev", link.device, "xdpdrv"], args].concat();
        link.asked.exec("ip", &line)?.success().map(drop)
    };
    let encapsulated = || -> anyhow::Result<u64> {
        let counters = host.status()?.counters;
        let rows = counters.iter().filter(|row| row.reason == "xdp_encapsulated");
        Ok(rows.map(|row| row.packets).sum())
    };
    let before = encapsulated()?;
    xdp(&["pinned", &program.to_string_lossy()])?;
    let values = run(rig, &link, true, name);
    xdp(&["off"])?;
    let values = values?;
    ensure!(encapsulated()? > before, "XDP passed everything to TC");
    Ok(values)
}

/// Millions a second and the percentage that arrived.
fn as_fast_as_they_go(
    rig: &Rig,
    link: &Link<'_>,
    by_xdp: bool,
    name: &str,
) -> anyhow::Result<Vec<Value>> {
    let trial = flood(rig, link, by_xdp, None, &[])?;
    ensure!(trial.arrived > 0.0, "none arrived");
    Ok(vec![
        (name.to_owned(), "million/s", trial.offered * trial.arrived / 1e6),
        (format!("{name}_arrived"), "%", trial.arrived * 100.0),
    ])
}

/// Millions a second.
fn without_loss(
    rig: &Rig,
    link: &Link<'_>,
    by_xdp: bool,
    name: &str,
) -> anyhow::Result<Vec<Value>> {
    let threads = Threads::of(link.device)?;
    let found = lossless::search(|rate| {
        let trial = match rate {
            Some(rate) => {
                let pace = ["--rate", &rate.to_string(), "--milliseconds", TRIAL];
                flood(rig, link, by_xdp, Some(&threads), &pace)?
            }
            None => flood(rig, link, by_xdp, Some(&threads), &[])?,
        };
        // The printed steps show whether a result came about by chance.
        eprintln!("{name}: {:.0}/s, {:.2} % arrived", trial.offered, trial.arrived * 100.0);
        Ok(trial)
    })?;
    Ok(vec![(name.to_owned(), "million/s", found / 1e6)])
}

/// How long a trial is, in milliseconds.
const TRIAL: &str = "500";

/// Sends copies of a datagram. The ingress node sends them back by XDP or not, and receives them by
/// threads or as the kernel does by default. `pace` are further arguments for the generator;
/// without them it sends a million as fast as it can.
fn flood<'a>(
    rig: &Rig,
    link: &'a Link<'_>,
    by_xdp: bool,
    threads: Option<&Threads<'a>>,
    pace: &[&str],
) -> anyhow::Result<Trial> {
    // A veth receives XDP frames only while its NAPI runs, which GRO turns on. GRO is turned off
    // again for the other subjects.
    set(&link.asked, link.device, "gro", "on")?;
    let outcome = send(rig, link, by_xdp, threads, pace);
    set(&link.asked, link.device, "gro", "off")?;
    outcome
}

fn send<'a>(
    rig: &Rig,
    link: &'a Link<'_>,
    by_xdp: bool,
    threads: Option<&Threads<'a>>,
    pace: &[&str],
) -> anyhow::Result<Trial> {
    let macs = (mac_of(&link.from, link.device)?, mac_of(&link.asked, link.device)?);
    let frame =
        frames::udp(&Ends { macs, addresses: link.addresses }, (40_000, serve::COUNT), &[0; 18])?;
    let file = rig.cluster().instance().dir.join("flood");
    std::fs::write(&file, frame).context("write the frame")?;
    let program = std::env::current_exe().context("the path of this program")?;
    let count = ["count", link.device, "--by-xdp"];
    let mut sink = link.from.spawn(&program, if by_xdp { &count } else { &count[..2] })?;
    wait_listening(&mut sink)?;
    // NAPI also receives the frames that XDP sends back.
    let places = if by_xdp { vec![&link.asked, &link.from] } else { vec![&link.asked] };
    let started = threads.map(|threads| threads.start(places)).transpose()?;
    // The headers, in which the destination is changed.
    let args = ["flood", &file.to_string_lossy(), link.device, "--anew", "42"];
    let args = [&args, pace].concat();
    let flooded: Flooded = link.from.exec(&program.to_string_lossy(), &args)?.json()?;
    // Frames that are still in a queue arrive.
    std::thread::sleep(Duration::from_millis(50));
    // The kernel accepts no setting of threads for an interface that has no NAPI any more.
    drop(started);
    let printed = sink.stop()?.success()?.stdout;
    let line = printed.lines().last().context("the counter printed nothing")?;
    let received: Received = serde_json::from_str(line).context("the counter's report")?;
    let sent = flooded.sent as f64;
    Ok(Trial { offered: sent / flooded.seconds, arrived: received.packets as f64 / sent })
}
