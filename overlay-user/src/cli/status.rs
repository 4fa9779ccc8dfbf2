//! `overlay status`.

use clap::Args;

use super::{
    Context,
    format::{Format, FormatArg, json, print, table},
};
use crate::{api::Status, model::Role};

/// Show how this host's daemon and datapath are
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay status --format json")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Prints it.
pub(super) async fn run(context: &Context, args: &StatusArgs) -> anyhow::Result<()> {
    let status = context.status().await?;
    print(&match args.format.format {
        Format::Json => json(&status)?,
        Format::Table => words(&status),
    })
}

/// The status in words: what is wrong stands out, what is fine is short.
fn words(status: &Status) -> String {
    let mut text = String::new();
    for (name, value) in facts(status) {
        text.push_str(&format!("{:<16}{value}\n", format!("{name}:")));
    }
    if let Some(error) = &status.last_error {
        text.push_str(&format!("\nThe datapath could not be brought up to date:\n  {error}\n"));
    }
    if !status.entries.is_empty() {
        text.push('\n');
        let rows = status.entries.iter().map(|(map, n)| vec![map.clone(), n.to_string()]);
        text.push_str(&table(&["map", "entries"], rows));
    }
    let full: Vec<_> = status.fills.iter().filter(|row| row.entries + row.evicted > 0).collect();
    if !full.is_empty() {
        text.push('\n');
        let rows = full.into_iter().map(|row| {
            let numbers = [row.entries, row.room, row.evicted].map(|number| number.to_string());
            let words = [row.map.clone()].into_iter().chain(numbers);
            words.chain([row.description.clone()]).collect()
        });
        text.push_str(&table(&["map", "entries", "room for", "evicted", "of"], rows));
    }
    let drops: Vec<_> = status.counters.iter().filter(|row| row.direction == "drop").collect();
    if !drops.is_empty() {
        text.push('\n');
        let rows = drops
            .into_iter()
            .map(|row| vec![row.reason.clone(), row.packets.to_string(), row.description.clone()]);
        text.push_str(&table(&["dropped for", "packets", "meaning"], rows));
    }
    text
}

fn facts(status: &Status) -> Vec<(&'static str, String)> {
    let role = match status.role {
        Role::Manager => "manager",
        Role::Agent => "agent",
    };
    let manager = match (status.connected, status.manager) {
        (true, Some(manager)) => format!("{manager} (connected)"),
        (true, None) => "this host".to_owned(),
        (false, Some(manager)) => {
            format!("{manager} NOT REACHABLE: forwarding goes on by the last known state")
        }
        (false, None) => "NONE REACHABLE: forwarding goes on by the last known state".to_owned(),
    };
    let applied = match status.revision.saturating_sub(status.applied) {
        0 => format!("revision {}, all applied", status.revision),
        behind => format!("revision {}, BEHIND by {behind}", status.revision),
    };
    let sockets = match &status.socket_programs {
        Ok(()) => "published ports answer on localhost".to_owned(),
        Err(why) => format!("published ports do NOT answer on localhost: {why}"),
    };
    let vips = match (&status.socket_programs, status.socket_lb) {
        (Ok(()), true) => "TCP is balanced when containers connect, the rest by packets",
        (Err(_), true) => "balanced by packets, without the socket programs also TCP",
        (_, false) => "balanced by packets (--no-socket-lb)",
    };
    vec![
        ("node", format!("{} ({}), {role}", status.name, status.node.short())),
        ("daemon", format!("version {}, process {}", status.version, status.pid)),
        ("manager", manager),
        ("state", applied),
        (
            "underlay",
            format!(
                "{} on {}, MTU {}, VXLAN port {}",
                status.data_path_addr, status.iface, status.underlay_mtu, status.data_path_port
            ),
        ),
        ("programs", format!("TC by {}, XDP {}", status.tc, status.xdp)),
        ("sockets", sockets),
        ("VIPs", vips.to_owned()),
        ("pins", status.pin_dir.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{CounterRow, FillRow},
        model::Id,
    };

    fn status() -> Status {
        let row = |reason: &str, direction: &str| CounterRow {
            reason: reason.to_owned(),
            direction: direction.to_owned(),
            packets: 3,
            bytes: 180,
            description: "What it means.".to_owned(),
        };
        let fill = |map: &str, entries, evicted| FillRow {
            map: map.to_owned(),
            entries,
            room: 65_536,
            evicted,
            description: "what is in it".to_owned(),
        };
        Status {
            version: "0.1.0".to_owned(),
            pid: 4711,
            node: Id::from_text("0123456789abcdefghijklmno"),
            name: "h2".to_owned(),
            role: Role::Agent,
            data_path_addr: [172, 16, 1, 11].into(),
            iface: "eth0".to_owned(),
            underlay_mtu: 1500,
            data_path_port: 4789,
            xdp: "off".to_owned(),
            tc: "tcx".to_owned(),
            socket_programs: Ok(()),
            socket_lb: true,
            connected: true,
            manager: Some(([172, 16, 1, 10], 2377).into()),
            revision: 12,
            applied: 12,
            last_error: None,
            pin_dir: "/sys/fs/bpf/overlay/v1".to_owned(),
            entries: [("endpoints".to_owned(), 5)].into(),
            fills: vec![fill("conntrack", 12, 0), fill("ct_new", 0, 0), fill("affinity", 0, 7)],
            counters: vec![row("delivered_local", "forward"), row("not_peer", "drop")],
        }
    }

    #[test]
    fn a_healthy_node_is_told_in_a_screen() {
        insta::assert_snapshot!(words(&status()), @r#"
    node:           h2 (0123456789ab), agent
    daemon:         version 0.1.0, process 4711
    manager:        172.16.1.10:2377 (connected)
    state:          revision 12, all applied
    underlay:       172.16.1.11 on eth0, MTU 1500, VXLAN port 4789
    programs:       TC by tcx, XDP off
    sockets:        published ports answer on localhost
    VIPs:           TCP is balanced when containers connect, the rest by packets
    pins:           /sys/fs/bpf/overlay/v1

    MAP         ENTRIES
    endpoints   5

    MAP         ENTRIES   ROOM FOR   EVICTED   OF
    conntrack   12        65536      0         what is in it
    affinity    0         65536      7         what is in it

    DROPPED FOR   PACKETS   MEANING
    not_peer      3         What it means.
    "#);
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let text = words(&Status {
            connected: false,
            applied: 10,
            last_error: Some("map endpoints: full".to_owned()),
            socket_programs: Err("no cgroup v2 is mounted".to_owned()),
            ..status()
        });
        for wrong in [
            "172.16.1.10:2377 NOT REACHABLE",
            "BEHIND by 2",
            "map endpoints: full",
            "NOT answer on localhost: no cgroup v2 is mounted",
            "balanced by packets, without the socket programs",
        ] {
            assert!(text.contains(wrong), "{wrong}: {text}");
        }
    }
}
