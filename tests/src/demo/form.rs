//! Steps 1 and 2: the cluster and the network.

use anyhow::{Context as _, ensure};
use overlay::model::NodeState;
use serde_json::Value;

use super::report::{Report, expect};
use crate::{cluster::Cluster, host::Host, place::Place as _, wait::eventually};

/// `overlay init`, `overlay join`, the first commands of Docker users, and the network.
pub fn form(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    report.step("The cluster: overlay init, overlay join");
    let (first, others) = cluster.hosts().split_first().context("no hosts")?;
    let token = report.need(&format!("overlay init on {}", at(first)), || {
        Ok((first.init(&[])?, String::new()))
    })?;
    for host in others {
        report.need(&format!("overlay join on {}", at(host)), || {
            Ok((host.join(&token, first, &[])?, String::new()))
        })?;
    }
    report.check("every node is ready", || every_node_is_ready(cluster))?;
    for host in cluster.hosts() {
        let what = format!("network ls on {} lists ingress, bridge, host and none", host.name());
        report.check(&what, || lists_networks(host))?;
    }
    report
        .check("network inspect ingress has Docker's shape, the ingress-sbox and peers", || {
            inspect_ingress(cluster)
        })?;

    report.step("The network: overlay network create -d overlay mynet");
    report.need("network create", || {
        first.network_create("mynet", &["-d", "overlay"])?;
        Ok(((), String::new()))
    })?;
    report.check("every host knows it", || {
        for host in cluster.hosts() {
            let listed = host.overlay(&["network", "ls"])?.stdout;
            ensure!(listed.contains("mynet"), "{} lists: {listed}", host.name());
        }
        let network = inspect(first, "mynet")?;
        Ok(format!("subnet {}", network["IPAM"]["Config"][0]["Subnet"]))
    })?;
    Ok(())
}

fn at(host: &Host) -> String {
    format!("{} ({})", host.name(), host.address())
}

fn every_node_is_ready(cluster: &Cluster) -> anyhow::Result<String> {
    eventually("all nodes are ready", std::time::Duration::from_secs(10), || {
        let state = cluster.host(1).state()?;
        let ready = state.nodes.values().filter(|n| n.state == NodeState::Ready).count();
        expect("ready nodes", cluster.hosts().len(), ready)
    })?;
    Ok(cluster.host(1).overlay(&["node", "ls"])?.stdout)
}

fn lists_networks(host: &Host) -> anyhow::Result<String> {
    let listed = host.overlay(&["network", "ls"])?.stdout;
    for (name, driver, scope) in [
        ("ingress", "overlay", "swarm"),
        ("bridge", "bridge", "local"),
        ("host", "host", "local"),
        ("none", "null", "local"),
    ] {
        let row = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = row.into_iter().any(|words| words.ends_with(&[name, driver, scope]));
        ensure!(found, "expected a row `{name} {driver} {scope}`\nseen:\n{listed}");
    }
    Ok(String::new())
}

/// `network inspect NAME`: Docker prints a list of one.
fn inspect(host: &Host, name: &str) -> anyhow::Result<Value> {
    let mut list: Vec<Value> = host.overlay(&["network", "inspect", name])?.json()?;
    list.pop().context("an empty list")
}

fn inspect_ingress(cluster: &Cluster) -> anyhow::Result<String> {
    let ingress = inspect(cluster.host(1), "ingress")?;
    for (path, expected) in [
        ("/Name", "ingress"),
        ("/Driver", "overlay"),
        ("/Scope", "swarm"),
        ("/IPAM/Config/0/Subnet", "10.255.0.0/16"),
        ("/IPAM/Config/0/Gateway", "10.255.0.1"),
        ("/Options/com.docker.network.driver.overlay.vxlanid_list", "4096"),
        ("/Containers/ingress-sbox/Name", "ingress-endpoint"),
    ] {
        expect(path, Some(expected), ingress.pointer(path).and_then(Value::as_str))?;
    }
    expect("/Ingress", Some(true), ingress["Ingress"].as_bool())?;
    let sandbox = &ingress["Containers"]["ingress-sbox"];
    let address = sandbox["IPv4Address"].as_str().unwrap_or_default();
    let ip: std::net::Ipv4Addr = address
        .strip_suffix("/16")
        .and_then(|ip| ip.parse().ok())
        .with_context(|| format!("IPv4Address of ingress-sbox\nseen: {sandbox}"))?;
    let [a, b, c, d] = ip.octets();
    let mac = format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    expect("MacAddress of ingress-sbox", Some(mac.as_str()), sandbox["MacAddress"].as_str())?;
    let mut peers: Vec<_> = ingress["Peers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|peer| peer["IP"].as_str().map(str::to_owned))
        .collect();
    peers.sort();
    let mut hosts: Vec<_> = cluster.hosts().iter().map(|h| h.address().to_string()).collect();
    hosts.sort();
    expect("Peers", hosts, peers)?;
    Ok(serde_json::to_string_pretty(&ingress)?)
}
