//! Packets as fast as possible: into the tunnel, and out of it through TC and through XDP.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use overlay_common::{
    Mac,
    maps::{CONFIG_XDP_DECAP, Config},
};

use super::{
    cases::{Value, single},
    flood::{Flooded, Received},
    frames::{self, Ends},
    kernel,
    report::Subject,
    rig::{self, Rig, Spot, Way},
};
use crate::{Host, Place as _, eventually, place::wait_listening};

/// MAC of an interface at a place.
///
/// # Errors
/// If there is no such interface.
pub fn mac_of(place: &rig::Spot, device: &str) -> anyhow::Result<[u8; 6]> {
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

/// The frame that arrives at host 1 when a container on host 2 sends a datagram. For the underlay
/// it is a tunnel packet that is not decapsulated.
///
/// # Errors
/// If an interface has no MAC.
pub fn arriving(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<u8>> {
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

/// A file of the rig's with a frame.
///
/// # Errors
/// If it cannot be written.
pub fn file(rig: &Rig, name: &str, frame: &[u8]) -> anyhow::Result<PathBuf> {
    let path = rig.cluster().instance().dir.join(name);
    std::fs::write(&path, frame).context("write the frame")?;
    Ok(path)
}

/// Turns an offload of an interface on or off.
///
/// # Errors
/// The error of ethtool.
pub fn set(place: &Spot, device: &str, offload: &str, state: &str) -> anyhow::Result<()> {
    place.exec("ethtool", &["-K", device, offload, state])?.success().map(drop)
}

/// The sender of frames, the interface that they leave, and the interface that counts them: a place
/// and an interface each.
struct Flood<'a> {
    from: (&'a Spot, &'a str),
    out_of: (&'a Spot, &'a str),
    to: (&'a Spot, &'a str),
}

impl Flood<'_> {
    /// Sends copies of a frame. Returns millions a second and the percentage that arrived.
    fn run(&self, rig: &Rig, frame: &[u8]) -> anyhow::Result<(f64, f64)> {
        let frame = file(rig, "flood", frame)?;
        // A veth receives XDP frames only while its NAPI runs, which GRO turns on. GRO is turned
        // off again for the other subjects.
        let (place, device) = self.out_of;
        set(place, device, "gro", "on")?;
        let outcome = self.send(&frame);
        set(place, device, "gro", "off")?;
        outcome
    }

    fn send(&self, frame: &std::path::Path) -> anyhow::Result<(f64, f64)> {
        let program = std::env::current_exe().context("the path of this program")?;
        let ((sender, device), (receiver, counted)) = (self.from, self.to);
        let mut sink = receiver.spawn(&program, &["count", counted])?;
        wait_listening(&mut sink)?;
        let args = ["flood", &frame.to_string_lossy(), device];
        let flooded: Flooded = sender.exec(&program.to_string_lossy(), &args)?.json()?;
        // Frames that are still in a queue arrive.
        std::thread::sleep(Duration::from_millis(50));
        let printed = sink.stop()?.success()?.stdout;
        let line = printed.lines().last().context("the counter printed nothing")?;
        let received: Received = serde_json::from_str(line).context("the counter's report")?;
        let packets = received.packets as f64;
        ensure!(packets > 0.0, "none of {} packets arrived", flooded.sent);
        Ok((packets / flooded.seconds / 1e6, packets / flooded.sent as f64 * 100.0))
    }
}

/// Encapsulation: frames that leave a container, counted on the other host before any other
/// program. On the underlay, frames that leave the host.
pub fn encap(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let (way, hosts) = (rig.way(subject), rig.way(Subject::Underlay));
    let (client, server) = way.addresses;
    let macs = match subject {
        Subject::Underlay => (mac_of(&hosts.client, way.link)?, mac_of(&hosts.server, way.link)?),
        Subject::KernelVxlan => (rig::kernel_mac(2), rig::kernel_mac(1)),
        Subject::Overlay => (Mac::of_ip(client.into()).bytes(), Mac::of_ip(server.into()).bytes()),
    };
    // The way's neighbours are known then.
    way.client.ping(&server.to_string(), 1)?;
    let flood = Flood {
        from: (&way.client, way.interface),
        out_of: (&way.behind.0, &way.behind.1),
        to: (&hosts.server, way.link),
    };
    let (rate, arrived) = flood.run(rig, &inner(way, macs)?)?;
    Ok(vec![("flood_encap", "million/s", rate), ("flood_encap_arrived", "%", arrived)])
}

/// Decapsulation, counted where the container receives the packets.
pub fn decap(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let (rate, arrived) = flood_in(rig, subject)?;
    Ok(vec![("flood_decap", "million/s", rate), ("flood_decap_arrived", "%", arrived)])
}

fn flood_in(rig: &Rig, subject: Subject) -> anyhow::Result<(f64, f64)> {
    let (way, hosts) = (rig.way(subject), rig.way(Subject::Underlay));
    let flood = Flood {
        from: (&hosts.client, way.link),
        out_of: (&hosts.server, way.link),
        to: (&way.server, way.interface),
    };
    flood.run(rig, &arriving(rig, subject)?)
}

/// Like [`decap`], with native XDP on overlay's underlay interface.
pub fn decap_xdp(rig: &Rig, subject: Subject) -> anyhow::Result<Vec<Value>> {
    let rates = |(rate, arrived)| {
        vec![("flood_decap_xdp", "million/s", rate), ("flood_decap_xdp_arrived", "%", arrived)]
    };
    if subject != Subject::Overlay {
        return flood_in(rig, subject).map(rates);
    }
    let (host, device) = (rig.cluster().host(1), rig.way(subject).link);
    let spot = &rig.way(Subject::Underlay).server;
    // The generator's frames have their checksums, and so has everything on a veth without offload.
    set(spot, device, "tx", "off")?;
    let outcome = may_decapsulate(rig, true).and_then(|()| {
        let program = rig.pinned("progs", "xdp_underlay");
        let xdp = |args: &[&str]| {
            let line = [&["link", "set", "dev", device, "xdpdrv"], args].concat();
            spot.exec("ip", &line)?.success().map(drop)
        };
        xdp(&["pinned", &program.to_string_lossy()])?;
        let before = by_xdp(host)?;
        let rate = flood_in(rig, subject);
        let delivered = by_xdp(host).map(|now| now - before);
        xdp(&["off"])?;
        let rate = rate?;
        ensure!(delivered? > 0, "XDP passed everything to TC");
        let frame = arriving(rig, subject)?;
        let took = single(rig, ("xdp", "xdp_underlay"), device, &frame)?;
        Ok([rates(rate), vec![("xdp_underlay_to_local", "ns", took)]].concat())
    });
    set(spot, device, "tx", "on")?;
    may_decapsulate(rig, false)?;
    outcome
}

/// The number of packets that XDP has decapsulated on a host.
fn by_xdp(host: &Host) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    let rows = counters.iter().filter(|row| row.reason == "xdp_decapsulated");
    Ok(rows.map(|row| row.packets).sum())
}

/// Waits until the daemon of host 1 has noticed whether XDP may decapsulate.
fn may_decapsulate(rig: &Rig, expected: bool) -> anyhow::Result<()> {
    let map = kernel::pinned(&rig.pinned("maps", "config"))?;
    eventually("the daemon looks at the interface", Duration::from_secs(20), || {
        let mut config = [0; size_of::<Config>()];
        kernel::look_up(&map, 0, &mut config)?;
        let [a, b, c, d] = config[std::mem::offset_of!(Config, flags)..][..4] else {
            anyhow::bail!("the map is another");
        };
        let may = u32::from_ne_bytes([a, b, c, d]) & CONFIG_XDP_DECAP != 0;
        ensure!(may == expected, "it has not");
        Ok(())
    })
}
