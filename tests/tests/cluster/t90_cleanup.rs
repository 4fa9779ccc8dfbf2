//! After good and bad ends, nothing is left.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use overlay_tests::{
    Cluster, Host, Options, Place as _, Shared,
    bpffs::{self, Object},
    eventually,
};

const SOON: Duration = Duration::from_secs(15);

static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::formed(2, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    Ok(cluster)
});

/// Interfaces of endpoints on a host.
fn endpoint_links(host: &Host) -> anyhow::Result<BTreeSet<String>> {
    let shown = host.exec("ip", &["-brief", "link"])?.success()?.stdout;
    let names = shown.lines().filter_map(|line| line.split(['@', ' ']).next());
    let is_ours = |name: &&str| name.starts_with("ov") && !name.starts_with("ovl-");
    Ok(names.filter(is_ours).map(str::to_owned).collect())
}

/// Waits until neither the host nor the cluster has an object of a container.
fn wait_gone(cluster: &Cluster, host: &Host, name: &str) -> anyhow::Result<()> {
    eventually(&format!("nothing of {name} is left"), SOON, || {
        let state = cluster.host(1).state()?;
        ensure!(state.endpoints.values().all(|e| e.name != name), "the cluster has it");
        ensure!(host.containers()?.iter().all(|c| c.name != name), "{} has it", host.name());
        let links = endpoint_links(host)?;
        ensure!(links.is_empty(), "{links:?}");
        Ok(())
    })
}

fn existing(objects: &BTreeSet<Object>) -> anyhow::Result<Vec<Object>> {
    let mut left = Vec::new();
    for object in objects {
        if bpffs::exists(*object)? {
            left.push(*object);
        }
    }
    Ok(left)
}

#[test]
fn a_stopped_container_leaves_no_interface_entry_or_address() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let before = h2.status()?.entries;
    let a = h2.container("a").network("mynet").idle()?;
    assert_eq!(endpoint_links(h2)?.len(), 1);
    a.stop()?;
    wait_gone(&cluster, h2, "a")?;
    cluster.settle()?;
    assert_eq!(h2.status()?.entries, before);
    Ok(())
}

#[test]
fn a_killed_run_takes_its_command_along_and_the_agent_cleans_up() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let a = h2.container("a").network("mynet").idle()?;
    let command = a.pid();
    a.kill();
    eventually("the command is gone", SOON, || {
        let stat = std::fs::read_to_string(format!("/proc/{command}/stat")).unwrap_or_default();
        ensure!(stat.is_empty() || stat.contains(") Z "), "{stat}");
        Ok(())
    })?;
    wait_gone(&cluster, h2, "a")
}

#[test]
fn a_killed_command_ends_its_run_and_leaves_nothing() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let mut a = h2.container("a").network("mynet").idle()?;
    kill(a.pid(), Signal::SIGKILL)?;
    assert_eq!(a.wait()?.status.code(), Some(137));
    wait_gone(&cluster, h2, "a")
}

#[test]
fn containers_that_died_while_the_agent_was_away_are_cleaned_up_when_it_is_back()
-> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let a = h2.container("a").network("mynet").idle()?;
    let b = h2.container("b").network("mynet").idle()?;
    h2.kill_agent()?;
    a.kill();
    h2.start_agent()?;
    eventually("a is gone", SOON, || {
        let names: Vec<_> = h2.containers()?.into_iter().map(|c| c.name).collect();
        ensure!(names == ["b"], "{names:?}");
        let links = endpoint_links(h2)?;
        ensure!(links.len() == 1, "{links:?}");
        Ok(())
    })?;
    b.stop()?;
    wait_gone(&cluster, h2, "b")
}

#[test]
fn a_namespace_removed_under_its_endpoint_is_detached() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let name = cluster.instance().namespace("web");
    overlay_tests::netns::create(&name)?;
    let attach = ["endpoint", "attach", "--netns", &name, "--network", "mynet", "--name", "web"];
    h2.overlay(&attach)?;
    assert_eq!(endpoint_links(h2)?.len(), 1);
    h2.exec("ip", &["netns", "del", &name])?.success()?;
    h2.overlay(&["endpoint", "detach", "web"])?;
    wait_gone(&cluster, h2, "web")
}

#[test]
fn an_attached_namespace_works_and_detaching_gives_it_back_as_it_was() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let name = cluster.instance().namespace("given");
    overlay_tests::netns::create(&name)?;
    let attach = ["endpoint", "attach", "--netns", &name, "--network", "mynet", "--name", "given"];
    h2.overlay(&attach)?;
    cluster.settle()?;
    let asker = cluster.host(1).container("asker").network("mynet").idle()?;
    asker.ping("given", 2)?;
    h2.refuses(&attach, &["given"])?;
    h2.overlay(&["endpoint", "detach", "given"])?;
    wait_gone(&cluster, h2, "given")?;
    let shown = h2.exec("ip", &["-n", &name, "-brief", "link"])?.success()?.stdout;
    assert_eq!(shown.lines().count(), 1, "only lo: {shown}");
    Ok(())
}

#[test]
fn leaving_with_containers_needs_force_and_then_takes_everything_along() -> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80"])?;
    let _backend = h2.container("web.1").service("web").http(80)?;
    cluster.client().http_get(&h1.port(8080))?;
    let objects = bpffs::objects(&h2.dirs().pins)?;
    h2.refuses(&["leave"], &["web.1", "--force"])?;
    assert_eq!(cluster.client().http_get(&h2.port(8080))?.name, "web.1", "nothing half done");
    let said = h2.leave(true)?.stdout;
    assert!(said.contains("removed keeper of DNS sockets (process "), "{said}");
    eventually("its maps and programs are freed", SOON, || {
        let left = existing(&objects)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let state = h1.state()?;
    assert!(state.node("h2").is_none() && state.endpoints.is_empty(), "{state:?}");
    Ok(())
}

#[test]
fn all_hosts_leave_and_nothing_is_left_on_any() -> anyhow::Result<()> {
    let cluster = Cluster::formed(3, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    let containers = cluster
        .hosts()
        .iter()
        .map(|host| host.container(&format!("on-{}", host.name())).network("mynet").idle())
        .collect::<anyhow::Result<Vec<_>>>()?;
    containers[0].ping("on-h3", 1)?;
    let mut objects = BTreeSet::new();
    for host in cluster.hosts() {
        objects.extend(bpffs::objects(&host.dirs().pins)?);
    }
    for container in containers {
        container.stop()?;
    }
    for host in cluster.hosts().iter().rev() {
        host.leave(host.name() == "h1")?;
    }
    assert_eq!(cluster.leftovers()?, Vec::<String>::new());
    eventually("all maps and programs are freed", SOON, || {
        let left = existing(&objects)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    cluster.clean()
}

#[test]
fn what_a_crashed_daemon_left_is_removed_by_leaving_with_force() -> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    let a = h2.container("a").network("mynet").idle()?;
    h2.kill_agent()?;
    a.kill();
    assert!(!h2.leftovers()?.is_empty(), "there is something to remove");
    h2.refuses(&["leave"], &["--force"])?;
    h2.leave(true)?;
    assert_eq!(h2.leftovers()?, Vec::<String>::new());
    // The cluster learns of it from the administrator, and the host may join again.
    h1.overlay(&["node", "rm", "--force", "h2"])?;
    assert!(h1.state()?.endpoints.is_empty());
    let join = h1.overlay(&["token", "create"])?.stdout;
    let words: Vec<_> = join.split_whitespace().skip(1).collect();
    h2.overlay(&[&words[..], &["--name", "h2"]].concat())?;
    let b = h2.container("b").network("mynet").idle()?;
    let c = h1.container("c").network("mynet").idle()?;
    b.ping(&c.ip()?.to_string(), 2)
}

#[test]
fn a_daemon_that_starts_after_a_crash_takes_over_what_is_there() -> anyhow::Result<()> {
    let cluster = Cluster::formed(1, Options::default())?;
    let h1 = cluster.host(1);
    h1.network_create("mynet", &[])?;
    let a = h1.container("a").network("mynet").idle()?;
    let b = h1.container("b").network("mynet").http(80)?;
    h1.kill_agent()?;
    // Its socket and lock file are still there: they must not keep it from starting.
    assert!(h1.dirs().socket().exists());
    h1.start_agent()?;
    assert_eq!(a.http_get("b:80")?.name, "b");
    assert_eq!(endpoint_links(h1)?.len(), 2);
    // An interface of an endpoint that the cluster does not have is a leftover.
    h1.kill_agent()?;
    h1.exec("ip", &["link", "add", "ov0123456789ab", "type", "veth", "peer", "name", "x0"])?
        .success()?;
    h1.start_agent()?;
    eventually("the leftover is removed", SOON, || {
        let links = endpoint_links(h1)?;
        ensure!(links.len() == 2, "{links:?}");
        Ok(())
    })?;
    assert_eq!(b.http_get(&format!("{}:80", b.ip()?)).context("b")?.name, "b");
    Ok(())
}
