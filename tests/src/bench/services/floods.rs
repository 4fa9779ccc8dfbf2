//! Packets as fast as they go through a published port to a backend elsewhere: they come in by the
//! asked host's link and go out by it, through the tunnel, and are counted and dropped where they arrive.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, ensure};

use super::{
    super::{
        flood::{Flooded, Received},
        floods::{mac_of, set},
        frames::{self, Ends},
        rig::Spot,
        serve,
    },
    cases::Value,
    report::Subject,
    rig::Rig,
    routed,
};
use crate::{Place as _, place::wait_listening};

/// The other end of the asked host's link and that host, the interface of each, the client's address and
/// the one that it asks.
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

/// Millions a second and the percentage that arrived, under the name of the case.
fn values(name: &str, (rate, arrived): (f64, f64)) -> Vec<Value> {
    vec![(name.to_owned(), "million/s", rate), (format!("{name}_arrived"), "%", arrived)]
}

/// Through TC, or nftables.
///
/// # Errors
/// If nothing arrives.
pub fn by_tc(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let Some(link) = link(rig, subject) else { return Ok(vec![]) };
    Ok(values("published_flood", flood(rig, &link, false)?))
}

/// As [`by_tc`], with native XDP on the asked host's interface.
///
/// # Errors
/// If nothing arrives, or not by XDP.
pub fn by_xdp(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let Some(link) = link(rig, subject) else { return Ok(vec![]) };
    if subject != Subject::Overlay {
        return Ok(values("published_flood_xdp", flood(rig, &link, false)?));
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
    let flooded = flood(rig, &link, true);
    xdp(&["off"])?;
    let flooded = flooded?;
    ensure!(encapsulated()? > before, "XDP passed everything to TC");
    Ok(values("published_flood_xdp", flooded))
}

/// Sends a million copies of a datagram, which the asked host sends back by XDP or not. Returns millions a
/// second and the percentage that arrived.
fn flood(rig: &Rig, link: &Link<'_>, by_xdp: bool) -> anyhow::Result<(f64, f64)> {
    // A veth takes XDP frames when its NAPI runs, which GRO turns on; off again for the others.
    set(&link.asked, link.device, "gro", "on")?;
    let outcome = send(rig, link, by_xdp);
    set(&link.asked, link.device, "gro", "off")?;
    outcome
}

fn send(rig: &Rig, link: &Link<'_>, by_xdp: bool) -> anyhow::Result<(f64, f64)> {
    let macs = (mac_of(&link.from, link.device)?, mac_of(&link.asked, link.device)?);
    let frame =
        frames::udp(&Ends { macs, addresses: link.addresses }, (40_000, serve::COUNT), &[0; 18])?;
    let file = rig.cluster().instance().dir.join("flood");
    std::fs::write(&file, frame).context("write the frame")?;
    let program = std::env::current_exe().context("the path of this program")?;
    let count = ["count", link.device, "--by-xdp"];
    let mut sink = link.from.spawn(&program, if by_xdp { &count } else { &count[..2] })?;
    wait_listening(&mut sink)?;
    // The headers, in which the destination is changed.
    let args = ["flood", &file.to_string_lossy(), link.device, "--anew", "42"];
    let flooded: Flooded = link.from.exec(&program.to_string_lossy(), &args)?.json()?;
    // What is still in a queue arrives.
    std::thread::sleep(Duration::from_millis(50));
    let printed = sink.stop()?.success()?.stdout;
    let line = printed.lines().last().context("the counter printed nothing")?;
    let received: Received = serde_json::from_str(line).context("the counter's report")?;
    let packets = received.packets as f64;
    ensure!(packets > 0.0, "none of {} packets arrived", flooded.sent);
    Ok((packets / flooded.seconds / 1e6, packets / flooded.sent as f64 * 100.0))
}
