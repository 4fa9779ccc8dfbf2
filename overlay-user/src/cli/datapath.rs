//! `overlay datapath`: the datapath of this host without a controller, and what is pinned.

use std::{net::Ipv4Addr, os::unix::net::UnixStream};

use clap::{Args, Subcommand};
use overlay_common::maps;
use serde::Serialize;

use super::{
    error::refuse,
    format::{Format, FormatArg, json, print, table},
};
use crate::{
    datapath::{
        BpfDatapath, Datapath as _, LoadOptions, XdpMode,
        bpf::{
            Inventory, PinnedAttachment, PinnedMap, PinnedProgram,
            migrate::{self, Downgraded},
        },
        host,
    },
    link::{Links as _, NetlinkLinks},
    paths::Paths,
};

/// The datapath of this host, with or without a cluster
#[derive(Debug, Subcommand)]
pub(super) enum DatapathCommand {
    Load(LoadArgs),
    Unload(UnloadArgs),
    Downgrade(DowngradeArgs),
    Show(ShowArgs),
}

/// Load the datapath, attach it to an interface and pin it, without a cluster
///
/// The tables stay empty: everything but VXLAN to this host's address passes untouched. Loading
/// again replaces the programs in place.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  overlay datapath load --iface eth0
  overlay datapath load --iface eth0 --xdp generic
  bpftool map dump pinned /sys/fs/bpf/overlay/v2/maps/config
  overlay datapath unload")]
pub(super) struct LoadArgs {
    /// The interface that carries the tunnels
    #[arg(long, value_name = "IF")]
    iface: String,
    /// XDP on the interface: auto is native on physical NICs and off on others
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    xdp: XdpMode,
    /// UDP port of VXLAN
    #[arg(long, value_name = "PORT", default_value_t = overlay_common::DEFAULT_DATA_PATH_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1024..=49151))]
    data_path_port: u16,
    /// Flows that the conntrack table holds
    #[arg(long, value_name = "N", default_value_t = maps::CONNTRACK_ENTRIES as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    conntrack_size: u32,
    #[command(flatten)]
    format: FormatArg,
}

/// Detach the datapath and remove everything that is pinned
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay datapath unload")]
pub(super) struct UnloadArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Hand the datapath over to an older version of overlay, whose maps have layout 1
///
/// Stop the daemon first, and start the older version after it. Traffic goes on in between. Flows,
/// affinity and counters are there for the older version, but for what begins or changes from this
/// command until it starts: a connection through a VIP, a published port or to the outside that
/// begins in between breaks then. Counters of reasons that the older version does not know are
/// lost, and so is what was captured. Without this command an older version refuses to start beside
/// the newer maps; after `overlay datapath unload` it starts with nothing, and all such connections
/// break.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  systemctl stop overlay
  overlay datapath downgrade")]
pub(super) struct DowngradeArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Show what is pinned and attached, and how to look into it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  overlay datapath show
  overlay datapath show --format json")]
pub(super) struct ShowArgs {
    #[command(flatten)]
    format: FormatArg,
}

pub(super) async fn run(paths: &Paths, command: DatapathCommand) -> anyhow::Result<()> {
    match command {
        DatapathCommand::Load(args) => load(paths, &args).await,
        DatapathCommand::Unload(args) => unload(paths, args.format.format),
        DatapathCommand::Downgrade(args) => hand_over(paths, args.format.format),
        DatapathCommand::Show(args) => show(paths, args.format.format),
    }
}

async fn load(paths: &Paths, args: &LoadArgs) -> anyhow::Result<()> {
    refuse_cluster(paths)?;
    host::preflight(paths)?;
    if BpfDatapath::pinned_config(&paths.pin_dir)?.is_some_and(of_a_controller) {
        return Err(refuse(
            format!("{} holds the datapath of a cluster's daemon", paths.pin_dir.display()),
            "stop that cluster's daemon and run `overlay datapath unload`, or choose another \
             --pin-dir",
        ));
    }
    let config = config(args).await?;
    let options = LoadOptions {
        pin_dir: paths.pin_dir.clone(),
        conntrack_size: args.conntrack_size,
        underlay_ipv6: false,
    };
    let first = Inventory::read(&paths.pin_dir)?.maps.is_empty();
    let attached = BpfDatapath::load(&options).and_then(|datapath| {
        datapath.set_config(&config)?;
        let xdp = datapath.attach_underlay(&args.iface, args.xdp)?;
        Ok((xdp, datapath.tc_flavour()))
    });
    let (xdp, flavour) = match attached {
        Ok(attached) => attached,
        Err(e) if first => {
            // Nothing half-made; the first error is the one to report.
            let _ = BpfDatapath::unload(&paths.pin_dir);
            return Err(e.into());
        }
        Err(e) => return Err(e.into()),
    };
    if args.format.format == Format::Table {
        let xdp = serde_json::to_value(xdp)?;
        let vtep = Ipv4Addr::from(config.vtep);
        print(&format!(
            "Loaded on {} ({vtep}): TC through {flavour}, XDP {}.\n\n",
            args.iface,
            xdp.as_str().unwrap_or_default()
        ))?;
    }
    show(paths, args.format.format)
}

/// A daemon that runs, or will run again, loads the datapath itself.
fn refuse_cluster(paths: &Paths) -> anyhow::Result<()> {
    let leave = "its daemon loads the datapath itself (`overlay datapath show`); to load it \
                 without a cluster run `overlay leave` first";
    if paths.config().exists() {
        let message = format!("this host is in a cluster ({} exists)", paths.config().display());
        return Err(refuse(message, leave));
    }
    refuse_daemon(paths, leave)
}

fn refuse_daemon(paths: &Paths, hint: &str) -> anyhow::Result<()> {
    if UnixStream::connect(paths.socket()).is_err() {
        return Ok(());
    }
    let message =
        format!("a daemon runs on this host (it answers on {})", paths.socket().display());
    Err(refuse(message, hint))
}

/// Only a controller knows an ingress network.
fn of_a_controller(config: maps::Config) -> bool {
    config.ingress_gateway != overlay_common::Be32::ZERO
}

/// The config of a node without networks.
async fn config(args: &LoadArgs) -> anyhow::Result<maps::Config> {
    let links = NetlinkLinks::new()?;
    let facts = links.underlay(&args.iface).await?;
    let mut vtep = None;
    for address in links.addresses(&[]).await? {
        if links.interface_with(address.into()).await?.as_deref() == Some(args.iface.as_str()) {
            vtep = Some(address);
            break;
        }
    }
    let Some(vtep) = vtep else {
        return Err(refuse(
            format!("{} has no IPv4 address for tunnels to end at", args.iface),
            format!("give it one (`ip addr add .. dev {}`) or choose another --iface", args.iface),
        ));
    };
    Ok(maps::Config {
        vtep: vtep.into(),
        underlay_ifindex: facts.ifindex,
        netns_cookie: host::netns_cookie()?,
        underlay_mtu: facts.mtu,
        vxlan_port: overlay_common::Be16::new(args.data_path_port),
        underlay_mac: facts.mac,
        flags: args.xdp.flags(&facts),
        ..maps::Config::default()
    })
}

/// The objects that `unload` removed.
#[derive(Serialize)]
struct Unloaded {
    removed: Vec<String>,
}

fn unload(paths: &Paths, format: Format) -> anyhow::Result<()> {
    refuse_daemon(
        paths,
        "its traffic would stop; run `overlay leave`, or stop the daemon before you unload",
    )?;
    let removed = BpfDatapath::unload(&paths.pin_dir)?;
    match format {
        Format::Json => print(&json(&Unloaded { removed })?),
        Format::Table if removed.is_empty() => print(&nothing(paths)),
        Format::Table => print(&table(&["removed"], removed.into_iter().map(|what| vec![what]))),
    }
}

fn hand_over(paths: &Paths, format: Format) -> anyhow::Result<()> {
    refuse_daemon(paths, "it would go on with the newer maps; stop it first")?;
    let handed_over = migrate::downgrade(&paths.pin_dir)?;
    match (format, handed_over) {
        (Format::Json, handed_over) => print(&json(&handed_over.unwrap_or_default())?),
        (Format::Table, None) => print(&nothing(paths)),
        (Format::Table, Some(Downgraded { maps, attachments })) => print(&format!(
            "Handed {} maps and {attachments} attachments over to layout 1.\nStart the older version \
             now: what begins until then it does not find.\n",
            maps.len()
        )),
    }
}

fn show(paths: &Paths, format: Format) -> anyhow::Result<()> {
    let inventory = Inventory::read(&paths.pin_dir)?;
    match format {
        Format::Json => print(&json(&inventory)?),
        Format::Table if inventory == Inventory::default() => print(&nothing(paths)),
        Format::Table => print(&tables(inventory)),
    }
}

fn nothing(paths: &Paths) -> String {
    format!("Nothing is loaded in {}.\n", paths.pin_dir.display())
}

fn tables(inventory: Inventory) -> String {
    let Inventory { maps, programs, links } = inventory;
    let header = ["map", "type", "key", "value", "entries", "look into it"];
    let maps = table(&header, maps.into_iter().map(map_row));
    let header = ["program", "type", "id", "bytes", "look at it"];
    let programs = table(&header, programs.into_iter().map(program_row));
    let links = table(&["attached to", "through", "program id"], links.into_iter().map(link_row));
    format!("{maps}\n{programs}\n{links}")
}

fn map_row(map: PinnedMap) -> Vec<String> {
    let PinnedMap { name, path, id: _, kind, key_size, value_size, max_entries } = map;
    vec![
        name,
        kind,
        key_size.to_string(),
        value_size.to_string(),
        max_entries.to_string(),
        format!("bpftool map dump pinned {}", path.display()),
    ]
}

fn program_row(program: PinnedProgram) -> Vec<String> {
    let PinnedProgram { name, path, id, kind, size, jited: _ } = program;
    let look = format!("bpftool prog show pinned {}", path.display());
    vec![name, kind, id.to_string(), size.to_string(), look]
}

fn link_row(link: PinnedAttachment) -> Vec<String> {
    let PinnedAttachment { name, path: _, kind, program, attached } = link;
    let name = if attached { name } else { format!("{name} (gone)") };
    vec![name, kind, program.map_or_else(|| "-".to_owned(), |id| id.to_string())]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: DatapathCommand,
    }

    fn parse(line: &str) -> Result<DatapathCommand, clap::Error> {
        Line::try_parse_from(line.split_whitespace()).map(|line| line.command)
    }

    fn paths(dir: &Path) -> Paths {
        Paths {
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            pin_dir: dir.join("bpf/overlay"),
        }
    }

    #[test]
    fn the_command_line_is_checked() {
        assert!(parse("datapath load").is_err(), "an interface must be named");
        assert!(parse("datapath load --iface eth0 --xdp fast").is_err());
        assert!(parse("datapath load --iface eth0 --data-path-port 80").is_err());
        assert!(parse("datapath load --iface eth0 --conntrack-size 0").is_err());
        let Ok(DatapathCommand::Load(args)) = parse("datapath load --iface eth0") else { panic!() };
        assert_eq!((args.xdp, args.data_path_port), (XdpMode::Auto, 4789));
    }

    #[tokio::test]
    async fn a_host_in_a_cluster_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let paths = paths(dir.path());
        std::fs::create_dir_all(&paths.state_dir).expect("made");
        std::fs::create_dir_all(&paths.run_dir).expect("made");
        std::fs::write(paths.config(), "{}").expect("written");
        let load = || parse("datapath load --iface lo").expect("parsed");
        let error = run(&paths, load()).await.expect_err("refused").to_string();
        assert!(error.contains("is in a cluster") && error.contains("overlay leave"), "{error}");
        std::fs::remove_file(paths.config()).expect("removed");
        let _daemon = std::os::unix::net::UnixListener::bind(paths.socket()).expect("bound");
        let error = run(&paths, load()).await.expect_err("refused").to_string();
        assert!(error.contains("a daemon runs"), "{error}");
        let unload = parse("datapath unload").expect("parsed");
        let error = run(&paths, unload).await.expect_err("refused").to_string();
        assert!(error.contains("traffic would stop"), "{error}");
    }

    #[test]
    fn load_show_and_unload_leave_nothing_behind() {
        if !is_root("loading the datapath") {
            return;
        }
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let (host, dir) = (TestNetns::new(), tempfile::tempdir().expect("a temporary directory"));
        let paths = paths(dir.path());
        let bpffs = dir.path().join("bpf");
        std::fs::create_dir_all(&bpffs).expect("made");
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            host.command("ip link add eth0 type veth peer name wire");
            let command = |line: &str| {
                host.block_on(run(&paths, parse(line).expect("parsed"))).map_err(|e| e.to_string())
            };
            let missing = command("datapath load --iface eth9").expect_err("no such interface");
            assert!(missing.contains("there is no interface \"eth9\""), "{missing}");
            let bare = command("datapath load --iface eth0").expect_err("no address");
            assert!(bare.contains("has no IPv4 address"), "{bare}");
            assert!(!paths.pin_dir.exists(), "a refused load pins nothing");
            host.command("ip addr add 192.0.2.10/24 dev eth0");
            command("datapath load --iface eth0").expect("loaded");
            command("datapath load --iface eth0 --xdp generic").expect("loaded again");
            command("datapath show --format json").expect("shown");
            let inventory = Inventory::read(&paths.pin_dir).expect("read");
            let kinds: Vec<_> = inventory.links.iter().map(|l| l.kind.as_str()).collect();
            assert!(kinds == ["tcx", "xdp"] || kinds == ["clsact", "xdp"], "{kinds:?}");
            let text = tables(inventory);
            assert!(text.contains("bpftool map dump pinned"), "{text}");
            assert!(text.contains("bpftool prog show pinned"), "{text}");
            let config = BpfDatapath::pinned_config(&paths.pin_dir).expect("read");
            let vtep = config.map(|c| Ipv4Addr::from(c.vtep));
            assert_eq!(vtep, Some(Ipv4Addr::new(192, 0, 2, 10)));
            command("datapath downgrade").expect("handed over");
            let left = Inventory::read(&paths.pin_dir).expect("read");
            assert_eq!(left, Inventory::default(), "nothing of this version");
            let config = BpfDatapath::pinned_config(&paths.pin_dir).expect("read");
            assert_eq!(config.map(|c| Ipv4Addr::from(c.vtep)), vtep, "the older version has it");
            command("datapath downgrade").expect("nothing to hand over is no error");
            command("datapath load --iface eth0 --xdp generic").expect("loaded again");
            assert_eq!(Inventory::read(&paths.pin_dir).expect("read").links.len(), 2);
            command("datapath unload").expect("unloaded");
            assert!(!paths.pin_dir.exists());
            command("datapath unload").expect("nothing to unload is no error");
        }));
        umount2(&bpffs, MntFlags::MNT_DETACH).expect("unmounted");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }
}
