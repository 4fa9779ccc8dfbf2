//! A host's observation of its traffic: counters of endpoints and networks, drops and flows as they
//! happen, captures.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use overlay::api::TrafficRow;
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Shared, eventually, process::Process,
};
use pcap_file::pcapng::{
    Block, PcapNgReader,
    blocks::{
        enhanced_packet::EnhancedPacketOption, interface_description::InterfaceDescriptionOption,
    },
};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

fn rows(host: &Host, by: &str) -> anyhow::Result<Vec<TrafficRow>> {
    host.overlay(&["bpf", "counters", "--by", by, "--format", "json"])?.json()
}

/// Packets of an endpoint in one direction for one reason.
fn packets(host: &Host, endpoint: &str, traffic: &str, reason: &str) -> anyhow::Result<u64> {
    let rows = rows(host, "endpoint")?;
    let of = rows.iter().filter(|row| {
        row.endpoint.as_deref() == Some(endpoint) && row.traffic == traffic && row.reason == reason
    });
    Ok(of.map(|row| row.packets).sum())
}

/// Two containers on one network: on the first host and on host `second`.
fn pair(cluster: &Cluster, network: &str, second: usize) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &[])?;
    Ok([
        cluster.host(1).container(&format!("{network}-a")).network(network).idle()?,
        cluster.host(second).container(&format!("{network}-b")).network(network).idle()?,
    ])
}

#[test]
fn every_ping_is_counted_once_for_each_end() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "counted", 2)?;
    a.ping(&b.ip()?.to_string(), 7)?;
    for (host, name) in [(1, "counted-a"), (2, "counted-b")] {
        let host = cluster.host(host);
        assert_eq!(packets(host, name, "sent", "encapsulated")?, 7, "{name}");
        assert_eq!(packets(host, name, "received", "decapsulated")?, 7, "{name}");
    }
    Ok(())
}

#[test]
fn a_network_counts_what_its_endpoints_on_the_host_do() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "summed", 1)?;
    a.ping(&b.ip()?.to_string(), 3)?;
    b.ping(&a.ip()?.to_string(), 2)?;
    let rows = rows(cluster.host(1), "network")?;
    for traffic in ["sent", "received"] {
        let found = rows.iter().find(|row| {
            row.network.as_deref() == Some("summed")
                && row.traffic == traffic
                && row.reason == "delivered_local"
        });
        assert_eq!(found.map(|row| row.packets), Some(10), "requests and replies: {rows:?}");
    }
    Ok(())
}

#[test]
fn a_drop_is_counted_for_the_endpoint_that_sent_it() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, _b] = pair(&cluster, "refused", 2)?;
    let mut nobody = a.ip()?.octets();
    nobody[3] = 200;
    a.cannot_connect(&format!("{}:80", std::net::Ipv4Addr::from(nobody)))?;
    let host = cluster.host(1);
    assert!(packets(host, "refused-a", "sent", "arp_unknown")? > 0);
    assert_eq!(packets(host, "refused-a", "received", "arp_unknown")?, 0);
    Ok(())
}

#[test]
fn counters_outlive_the_daemon_and_go_with_their_endpoint() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "kept", 1)?;
    let to_b = b.ip()?.to_string();
    a.ping(&to_b, 4)?;
    let host = cluster.host(1);
    host.kill_agent()?;
    a.ping(&to_b, 1)?;
    host.start_agent()?;
    assert_eq!(packets(host, "kept-a", "sent", "delivered_local")?, 5, "also without a daemon");
    a.stop()?;
    assert_eq!(packets(host, "kept-a", "sent", "delivered_local")?, 0);
    let c = host.container("kept-c").network("kept").idle()?;
    assert_eq!(packets(host, "kept-c", "sent", "delivered_local")?, 0, "a new one starts at zero");
    c.ping(&to_b, 2)?;
    assert_eq!(packets(host, "kept-c", "sent", "delivered_local")?, 2);
    Ok(())
}

/// `overlay monitor` or `overlay capture` on a host, once it has begun.
fn watching(host: &Host, name: &str, args: &[&str]) -> anyhow::Result<Process> {
    let log = host.logs().join(format!("{name}.log"));
    let mut process = Process::spawn(host.overlay_command(args)?, &log)?;
    eventually("it watches", Duration::from_secs(20), || {
        // A command that has seen enough already has watched all the same.
        if process.output().contains("end with Ctrl-C") {
            return Ok(());
        }
        process.check_running()?;
        anyhow::bail!("it said {:?}", process.output())
    })?;
    Ok(process)
}

/// Waits for its end; its last line has the number of events.
fn ended(process: &mut Process) -> anyhow::Result<String> {
    Ok(process.wait(Duration::from_secs(30))?.success()?.stdout)
}

#[test]
fn monitor_shows_a_spoofed_packet_with_its_headers() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "spoofed", 2)?;
    let host = cluster.host(1);
    let args = ["monitor", "--network", "spoofed", "--reason", "spoofed_source"];
    let args = [&args[..], &["--protocol", "icmp", "--count", "1"]].concat();
    let mut text = watching(host, "monitor-text", &args)?;
    let mut json = watching(host, "monitor-json", &[&args[..], &["--format", "json"]].concat())?;
    // An address that is not the container's own.
    let (mine, to) = (a.ip()?, b.ip()?);
    let mut other = mine.octets();
    other[3] = 99;
    let other = std::net::Ipv4Addr::from(other);
    a.exec("ip", &["address", "add", &format!("{other}/24"), "dev", "eth0"])?.success()?;
    a.exec(
        "ip",
        &["route", "replace", &format!("{to}/32"), "dev", "eth0", "src", &other.to_string()],
    )?
    .success()?;
    // ARP would be dropped, too.
    let mac = to.octets().map(|byte| format!("{byte:02x}")).join(":");
    let neighbour = ["neigh", "replace", &to.to_string(), "dev", "eth0", "lladdr"];
    a.exec("ip", &[&neighbour[..], &[&format!("02:42:{mac}")]].concat())?.success()?;
    a.cannot_ping(&to.to_string())?;
    let line = ended(&mut text)?;
    let expected = format!("icmp {other} > {to} echo request");
    for part in ["drop spoofed_source sent by spoofed-a on spoofed", &expected, "1 event, 0 lost"] {
        assert!(line.contains(part), "{part:?} in {line}");
    }
    let printed = ended(&mut json)?;
    let object =
        printed.lines().find(|line| line.starts_with("{\"event\"")).context("an object")?;
    let event: serde_json::Value = serde_json::from_str(object)?;
    assert_eq!(event["event"]["headers"]["source"], other.to_string());
    assert_eq!(event["event"]["endpoint"], "spoofed-a");
    Ok(())
}

#[test]
fn monitor_shows_a_new_flow_with_its_service_and_backend() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let host = cluster.host(1);
    host.network_create("flows", &[])?;
    host.service_create("shop", &["--network", "flows"])?;
    let _shop = cluster.host(2).container("shop.1").service("shop").http(80)?;
    let asker = host.container("asker").network("flows").idle()?;
    let mut monitor =
        watching(host, "monitor-flow", &["monitor", "--type", "flow", "--count", "1"])?;
    asker.http_get("shop:80")?;
    let line = ended(&mut monitor)?;
    // Without the socket programs the event is about the first packet.
    let reason =
        if host.status()?.socket_programs.is_ok() { "socket_balanced" } else { "flow_created" };
    let asked = format!("{reason} tcp {}:", asker.ip()?);
    for part in [asked.as_str(), "service shop to shop.1"] {
        assert!(line.contains(part), "{part:?} in {line}");
    }
    Ok(())
}

/// A captured packet.
struct Captured {
    /// Direction, as `epb_flags` has it.
    flags: u32,
    frame: Vec<u8>,
}

/// The names of a capture's interfaces, and its packets.
fn packets_of(path: &Path) -> anyhow::Result<(Vec<String>, Vec<Captured>)> {
    let mut reader = PcapNgReader::new(std::fs::File::open(path)?)?;
    let (mut names, mut packets) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block? {
            Block::InterfaceDescription(block) => {
                names.extend(block.options.iter().filter_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                }));
            }
            Block::EnhancedPacket(block) => {
                let flags = block.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Flags(flags) => Some(*flags),
                    _ => None,
                });
                packets
                    .push(Captured { flags: flags.context("flags")?, frame: block.data.to_vec() });
            }
            _ => {}
        }
    }
    Ok((names, packets))
}

#[test]
fn a_capture_of_pings_has_requests_and_replies_as_the_container_sees_them() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "captured", 2)?;
    let path = cluster.host(1).logs().join("pings.pcapng");
    let file = path.display().to_string();
    let args = ["capture", "-w", &file, "--endpoint", "captured-a", "--protocol", "icmp"];
    let mut capture =
        watching(cluster.host(1), "capture", &[&args[..], &["--count", "6"]].concat())?;
    a.ping(&b.ip()?.to_string(), 3)?;
    assert!(ended(&mut capture)?.contains("6 packets captured, 0 lost"));
    let (names, packets) = packets_of(&path)?;
    assert_eq!(names, ["captured-a@captured"]);
    let (outbound, inbound) = (2, 1);
    let seen: Vec<_> = packets.iter().map(|packet| (packet.flags, packet.frame[34])).collect();
    assert_eq!(seen, [(outbound, 8), (inbound, 0)].repeat(3), "echo requests and replies");
    let request = &packets[0].frame;
    assert_eq!(
        (&request[26..30], &request[30..34]),
        (&a.ip()?.octets()[..], &b.ip()?.octets()[..])
    );
    let Ok(tcpdump) = std::process::Command::new("tcpdump").args(["-nr", &file]).output() else {
        eprintln!("skipped: tcpdump is not installed");
        return Ok(());
    };
    let read = String::from_utf8_lossy(&tcpdump.stdout).into_owned();
    assert!(tcpdump.status.success() && read.contains("ICMP echo reply"), "{read}");
    Ok(())
}

#[test]
fn a_capture_that_is_interrupted_ends_with_what_it_has() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "interrupted", 1)?;
    let host = cluster.host(1);
    let path = host.logs().join("interrupted.pcapng");
    let file = path.display().to_string();
    let args = ["capture", "-w", &file, "--network", "interrupted", "--protocol", "icmp"];
    let mut capture = watching(host, "capture-interrupted", &args)?;
    a.ping(&b.ip()?.to_string(), 2)?;
    // The packet is in the stream before the message that the watch has begun.
    let args = ["capture", "--network", "interrupted", "--protocol", "icmp", "--count", "4"];
    let mut other = watching(host, "capture-other", &args)?;
    a.ping(&b.ip()?.to_string(), 1)?;
    ended(&mut other)?;
    std::thread::sleep(Duration::from_millis(300));
    capture.signal(nix::sys::signal::Signal::SIGINT);
    let said = ended(&mut capture)?;
    let (names, packets) = packets_of(&path)?;
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(packets.len(), 12, "each of six packets at both ends: {said}");
    assert!(said.contains("12 packets captured, 0 lost"), "{said}");
    Ok(())
}

#[test]
fn a_capture_that_is_not_read_loses_with_a_count_while_traffic_goes_on() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("overload", &[])?;
    let host = cluster.host(1);
    let a = host.container("overload-a").network("overload").idle()?;
    let b = cluster.host(2).container("overload-b").network("overload").bulk_recv(9000)?;
    let args = ["capture", "--network", "overload", "--snaplen", "16384"];
    let mut capture = watching(host, "capture-overload", &args)?;
    capture.signal(nix::sys::signal::Signal::SIGSTOP);
    a.bulk_send(&b.port(9000)?, 256 << 20)?;
    capture.signal(nix::sys::signal::Signal::SIGCONT);
    eventually("losses are told", Duration::from_secs(30), || {
        anyhow::ensure!(capture.output().contains("packets lost)"), "none yet");
        Ok(())
    })?;
    capture.signal(nix::sys::signal::Signal::SIGINT);
    let said = ended(&mut capture)?;
    assert!(!said.contains(" 0 lost"), "{}", &said[said.len().saturating_sub(200)..]);
    // The next one begins anew.
    let args = ["capture", "--network", "overload", "--protocol", "icmp", "--count", "1"];
    let mut next = watching(host, "capture-next", &args)?;
    a.ping(&b.ip()?.to_string(), 1)?;
    assert!(ended(&mut next)?.contains("1 packet captured, 0 lost"));
    Ok(())
}

#[test]
fn what_does_not_exist_cannot_be_watched() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let host = cluster.host(1);
    host.refuses(&["monitor", "--network", "none-such"], &["none-such", "overlay network ls"])?;
    host.refuses(&["monitor", "--reason", "bad-luck"], &["bad-luck", "overlay bpf counters"])?;
    host.refuses(&["capture", "--endpoint", "nobody"], &["nobody", "endpoints of this host"])?;
    host.refuses(&["capture", "--snaplen", "0"], &["snaplen"])?;
    host.refuses(&["capture", "--protocol", "carrier-pigeon"], &["carrier-pigeon"])?;
    Ok(())
}
