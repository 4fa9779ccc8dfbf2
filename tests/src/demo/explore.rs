//! `--keep`: the cluster stays, with the commands to look around.

use anyhow::Context as _;

use super::services::Services;
use crate::{binaries, bpffs, cluster::Cluster, place::Place};

/// Prints the commands and lets everything live on.
pub fn keep(cluster: Cluster, mut services: Services) -> anyhow::Result<()> {
    let overlay = binaries::overlay()?;
    let first = cluster.host(1);
    let dirs = first.dirs();
    let enter = |place: &dyn Enter| format!("nsenter {} --", place.words());

    println!("\nThe cluster stays up. Look around (as root):\n");
    println!("# from the client, through any host");
    for host in cluster.hosts() {
        println!("{} curl -s http://{}/", enter(cluster.client()), host.port(8080));
    }
    println!("\n# on {}", first.name());
    for (variable, dir) in [("STATE", &dirs.state), ("RUN", &dirs.run), ("PIN", &dirs.pins)] {
        println!("export OVERLAY_{variable}_DIR={}", dir.display());
    }
    for command in ["status", "node ls", "network ls", "service ls", "service ps hello"] {
        println!("{} {} {command}", enter(first), overlay.display());
    }
    println!("{} {} bpf conntrack", enter(first), overlay.display());
    println!("{} curl -s http://localhost:8080/", enter(first));
    println!("\n# its maps");
    for pin in bpffs::pins(&dirs.pins) {
        let name = pin.file_name().context("a pin's name")?.to_string_lossy().into_owned();
        if ["endpoints", "services", "backends", "published", "conntrack"].contains(&&*name) {
            println!("bpftool map dump pinned {}", pin.display());
        }
    }
    println!("\n# in a container on mynet");
    println!("{} curl -s http://hello:8080/", enter(&services.asker));
    for container in services.replicas.values_mut().flatten().chain([&mut services.asker]) {
        container.keep();
    }
    let instance = cluster.keep();
    println!("\n# remove it all");
    println!("{} --clean {}", std::env::current_exe()?.display(), instance.prefix);
    Ok(())
}

/// How to enter a place, as words.
trait Enter {
    fn words(&self) -> String;
}

impl<P: Place> Enter for P {
    fn words(&self) -> String {
        self.enter().join(" ")
    }
}
