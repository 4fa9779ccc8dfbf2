//! `overlay init`, `join`, `leave`: hosts form a cluster.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use overlay::model::{NodeState, Role};
use overlay_tests::{Cluster, Host, Options, Place as _, Shared, eventually};
use serde_json::Value;

static CLUSTER: Shared = Shared::new(|| Cluster::formed(3, Options::default()));

fn json(host: &Host, args: &[&str]) -> anyhow::Result<Value> {
    host.overlay(args)?.json()
}

fn node_state(host: &Host, name: &str) -> anyhow::Result<NodeState> {
    let state = host.state()?;
    let node = state.node(name).ok_or_else(|| anyhow::anyhow!("there is no node {name}"))?;
    Ok(node.state)
}

fn wait_for_node(host: &Host, name: &str, expected: NodeState) -> anyhow::Result<()> {
    eventually(&format!("{name} is {expected:?}"), Duration::from_secs(20), || {
        let seen = node_state(host, name)?;
        ensure!(seen == expected, "{name} is {seen:?}");
        Ok(())
    })
}

#[test]
fn every_host_knows_all_nodes_as_ready_with_their_own_addresses() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    for host in cluster.hosts() {
        let state = host.state()?;
        assert_eq!(state.nodes.len(), 3, "{}", host.name());
        for other in cluster.hosts() {
            let node = state.node(other.name()).expect("a node of that name");
            assert_eq!(node.data_path_addr, std::net::IpAddr::V4(other.address()));
            assert_eq!(node.state, NodeState::Ready);
            let role = if other.name() == "h1" { Role::Manager } else { Role::Agent };
            assert_eq!(node.role, role);
        }
        let ingress_ips: BTreeSet<_> = state.nodes.values().map(|n| n.ingress_ip).collect();
        assert_eq!(ingress_ips.len(), 3, "every node has its own address on ingress");
    }
    Ok(())
}

#[test]
fn status_tells_that_a_host_is_connected_and_up_to_date() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.settle()?;
    for host in cluster.hosts() {
        let status = host.status()?;
        assert!(status.connected, "{status:?}");
        assert_eq!(status.iface, "eth0");
        assert_eq!(status.underlay_mtu, 1500);
        assert_eq!(status.data_path_port, 4789);
        assert_eq!(status.last_error, None);
        assert_eq!(status.xdp, "off", "auto is off on a veth");
        assert_eq!(status.socket_programs, Ok(()));
        let printed = host.overlay(&["status"])?.stdout;
        assert!(printed.contains(host.name()), "{printed}");
    }
    Ok(())
}

#[test]
fn a_fresh_cluster_lists_the_networks_that_docker_users_expect() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    for host in cluster.hosts() {
        let rows = json(host, &["network", "ls", "--format", "json"])?;
        let seen: BTreeSet<_> = rows
            .as_array()
            .into_iter()
            .flatten()
            .map(|r| ["name", "driver", "scope"].map(|k| r[k].as_str().unwrap_or("-").to_owned()))
            .collect();
        for row in [
            ["ingress", "overlay", "swarm"],
            ["bridge", "bridge", "local"],
            ["host", "host", "local"],
            ["none", "null", "local"],
        ] {
            assert!(seen.contains(&row.map(str::to_owned)), "{row:?} in {seen:?}");
        }
    }
    Ok(())
}

#[test]
fn inspecting_ingress_shows_the_sandbox_of_the_host_asked_and_all_peers() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let mut sandboxes = BTreeSet::new();
    for host in cluster.hosts() {
        let inspected = json(host, &["network", "inspect", "ingress"])?;
        let ingress = &inspected[0];
        assert_eq!(ingress["Name"], "ingress");
        assert_eq!(ingress["Driver"], "overlay");
        assert_eq!(ingress["Scope"], "swarm");
        assert_eq!(ingress["Ingress"], true);
        assert_eq!(ingress["IPAM"]["Config"][0]["Subnet"], "10.255.0.0/16");
        assert_eq!(ingress["IPAM"]["Config"][0]["Gateway"], "10.255.0.1");
        let vni = &ingress["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
        assert_eq!(vni, "4096");
        let sandbox = &ingress["Containers"]["ingress-sbox"];
        assert_eq!(sandbox["Name"], "ingress-endpoint", "{ingress:#}");
        let mac = sandbox["MacAddress"].as_str().unwrap_or_default();
        assert!(mac.starts_with("02:42:0a:ff:"), "{sandbox}");
        sandboxes.insert(sandbox["IPv4Address"].to_string());
        let peers: BTreeSet<_> = ingress["Peers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| p["IP"].to_string())
            .collect();
        let hosts: BTreeSet<_> =
            cluster.hosts().iter().map(|h| format!("\"{}\"", h.address())).collect();
        assert_eq!(peers, hosts);
    }
    assert_eq!(sandboxes.len(), 3, "every host has a sandbox of its own: {sandboxes:?}");
    Ok(())
}

#[test]
fn what_is_made_on_the_manager_is_known_on_every_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("everywhere", &["--label", "color=blue"])?;
    cluster.settle()?;
    for host in cluster.hosts() {
        let inspected = json(host, &["network", "inspect", "everywhere"])?;
        assert_eq!(inspected[0]["Labels"]["color"], "blue");
    }
    cluster.host(1).overlay(&["network", "rm", "everywhere"])?;
    cluster.settle()?;
    cluster.host(2).refuses(&["network", "rm", "everywhere"], &[])?;
    Ok(())
}

#[test]
fn a_node_that_is_no_manager_says_where_to_run_the_command() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let words = ["not a manager", "h1", "172.16.1.10"];
    cluster.host(2).refuses(&["network", "create", "x"], &words)?;
    cluster.host(3).refuses(&["service", "create", "x"], &words)?;
    Ok(())
}

#[test]
fn a_silent_node_is_down_until_it_is_back() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h3) = (cluster.host(1), cluster.host(3));
    h3.kill_agent()?;
    wait_for_node(h1, "h3", NodeState::Down)?;
    h3.start_agent()?;
    wait_for_node(h1, "h3", NodeState::Ready)
}

#[test]
fn a_node_that_left_may_come_back_with_the_same_address_and_another_name() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h2.leave(false)?;
    assert_eq!(h2.leftovers()?, Vec::<String>::new());
    assert!(h1.state()?.node("h2").is_none());
    let join = h1.overlay(&["token", "create"])?.stdout;
    let words: Vec<_> = join.split_whitespace().skip(1).collect();
    h2.overlay(&[&words[..], &["--name", "again"]].concat())?;
    wait_for_node(h1, "again", NodeState::Ready)?;
    let state = h1.state()?;
    assert_eq!(
        state.node("again").map(|n| n.data_path_addr),
        Some(std::net::IpAddr::V4(h2.address()))
    );
    assert_eq!(state.nodes.len(), 3);
    // Restores the state for the other tests.
    h2.leave(false)?;
    h2.overlay(&[&words[..], &["--name", "h2"]].concat())?;
    wait_for_node(h1, "h2", NodeState::Ready)
}

#[test]
fn the_last_manager_leaves_only_when_forced() -> anyhow::Result<()> {
    let cluster = Cluster::formed(1, Options::default())?;
    let h1 = cluster.host(1);
    h1.refuses(&["leave"], &["manager", "--force"])?;
    h1.leave(true)?;
    assert_eq!(cluster.leftovers()?, Vec::<String>::new());
    cluster.clean()
}

#[test]
fn the_default_address_pool_feeds_ingress_and_the_networks_after_it() -> anyhow::Result<()> {
    let options = Options::default().init(&["--default-addr-pool", "20.20.0.0/16"]);
    let cluster = Cluster::formed(1, options)?;
    let h1 = cluster.host(1);
    h1.network_create("first", &[])?;
    let state = h1.state()?;
    let subnet = |name: &str| state.network(name).map(|n| n.subnet.to_string());
    assert_eq!(subnet("ingress").as_deref(), Some("20.20.0.0/24"));
    assert_eq!(subnet("first").as_deref(), Some("20.20.1.0/24"));
    cluster.clean()
}

#[test]
fn another_data_path_port_carries_the_traffic_of_all_nodes() -> anyhow::Result<()> {
    let options = Options::default().init(&["--data-path-port", "4790", "--listen-port", "2400"]);
    let cluster = Cluster::new(2, options)?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let init = ["--data-path-port", "4790", "--listen-port", "2400"].map(str::to_owned);
    let token = h1.init(&init)?;
    h2.overlay(&["join", "--token", &token, "172.16.1.10:2400", "--name", "h2"])?;
    assert_eq!(h2.status()?.data_path_port, 4790);
    h1.network_create("mynet", &[])?;
    let a = h1.container("a").network("mynet").idle()?;
    let b = h2.container("b").network("mynet").idle()?;
    a.ping(&b.ip()?.to_string(), 2)?;
    let sockets = h1.exec("ss", &["-Huln"])?.success()?.stdout;
    assert!(sockets.contains(":4790") && !sockets.contains(":4789"), "{sockets}");
    cluster.clean()
}

#[test]
fn init_without_start_only_makes_the_state_and_the_agent_takes_it_from_there() -> anyhow::Result<()>
{
    let cluster = Cluster::new(1, Options::default())?;
    let h1 = cluster.host(1);
    h1.init(&["--no-start".to_owned()])?;
    assert_eq!(h1.leftovers()?, Vec::<String>::new(), "nothing in the kernel yet");
    h1.start_agent()?;
    wait_for_node(h1, "h1", NodeState::Ready)?;
    cluster.clean()
}
