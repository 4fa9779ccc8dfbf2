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
    },
    cases::Value,
    report::Subject,
    rig::{self, Rig},
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
        Subject::Nftables => Some(Link {
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

/// Through TC, or nftables.
///
/// # Errors
/// If nothing arrives.
pub fn by_tc(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let Some(link) = link(rig, subject) else { return Ok(vec![]) };
    let (rate, arrived) = flood(rig, &link)?;
    Ok(vec![
        ("published_flood".to_owned(), "million/s", rate),
        ("published_flood_arrived".to_owned(), "%", arrived),
    ])
}

/// Sends a million copies of a datagram. Returns millions a second and the percentage that arrived.
fn flood(rig: &Rig, link: &Link<'_>) -> anyhow::Result<(f64, f64)> {
    // A veth takes XDP frames when its NAPI runs, which GRO turns on; off again for the others.
    set(&link.asked, link.device, "gro", "on")?;
    let outcome = send(rig, link);
    set(&link.asked, link.device, "gro", "off")?;
    outcome
}

fn send(rig: &Rig, link: &Link<'_>) -> anyhow::Result<(f64, f64)> {
    let macs = (mac_of(&link.from, link.device)?, mac_of(&link.asked, link.device)?);
    let frame = frames::udp(
        &Ends { macs, addresses: link.addresses },
        (40_000, *rig::PORTS.end()),
        &[0; 18],
    )?;
    let file = rig.cluster().instance().dir.join("flood");
    std::fs::write(&file, frame).context("write the frame")?;
    let program = std::env::current_exe().context("the path of this program")?;
    let mut sink = link.from.spawn(&program, &["count", link.device])?;
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
