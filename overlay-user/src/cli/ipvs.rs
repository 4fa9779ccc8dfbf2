//! `overlay ipvs`: the services as `ipvsadm -Ln` would show them.

use std::fmt::Write as _;

use clap::Args;

use super::{
    Context,
    format::{Format, FormatArg, json, print},
};
use crate::{
    api::LocalRequest,
    datapath::{Tables, VirtualServer},
};

/// Show services and the connections of their backends as `ipvsadm -Ln` would
#[derive(Debug, Args)]
#[command(
    after_help = "Connections are those that go through this host. Port 0 stands for all ports of a VIP, \
0.0.0.0 for the addresses of this host. Masq: the backend is on this host; Tunnel: on another one. \
Drained are those that a draining backend still has. What ipvsadm shows with --stats and --rate is not \
counted by service; `overlay bpf counters --by endpoint` has packets and bytes of each backend of this \
host.

Example:
  overlay ipvs"
)]
pub(super) struct IpvsArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Prints the virtual servers.
pub(super) async fn run(context: &Context, args: &IpvsArgs) -> anyhow::Result<()> {
    let tables: Tables = context.client().local(LocalRequest::Tables {}).await?;
    print(&match args.format.format {
        Format::Json => json(&tables.virtual_servers)?,
        Format::Table => words(&tables.virtual_servers),
    })
}

fn words(servers: &[VirtualServer]) -> String {
    let mut out = String::from(
        "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight \
         ActiveConn InActConn  Drained\n",
    );
    for server in servers {
        let VirtualServer { protocol, address, port, scheduler, persistent_secs, .. } = server;
        let flags = match persistent_secs {
            0 => String::new(),
            seconds => format!(" persistent {seconds}"),
        };
        // Writing to a string does not fail.
        let protocol = protocol.to_uppercase();
        let _ = writeln!(out, "{protocol:<4} {address}:{port} {scheduler}{flags}");
        for backend in &server.backends {
            let remote = format!("{}:{}", backend.address, backend.port);
            let _ = writeln!(
                out,
                "  -> {remote:<28} {:<7} {:<6} {:<10} {:<10} {}",
                backend.forward, backend.weight, backend.active, backend.inactive, backend.drained
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::RealServer;

    #[test]
    fn servers_are_shown_as_ipvsadm_shows_them() {
        let backend = RealServer {
            address: [10, 0, 1, 3].into(),
            port: 80,
            name: "web.1".to_owned(),
            node: "h1".to_owned(),
            forward: "Masq".to_owned(),
            weight: 3,
            state: "active".to_owned(),
            active: 12,
            inactive: 4,
            drained: 0,
        };
        let server = VirtualServer {
            protocol: "tcp".to_owned(),
            address: [10, 0, 1, 9].into(),
            port: 0,
            service: "web".to_owned(),
            scheduler: "wrr".to_owned(),
            persistent_secs: 600,
            backends: vec![backend],
        };
        let shown = words(&[server]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2], "TCP  10.0.1.9:0 wrr persistent 600");
        let columns: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!(columns, ["->", "10.0.1.3:80", "Masq", "3", "12", "4", "0"]);
        assert_eq!(lines[1].find("Weight"), lines[3].find("3      12"));
    }
}
