//! Multicast and broadcast: receivers on networks that replicate, and silence on other networks.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use overlay_tests::{Cluster, Container, Host, Options, Place as _, Shared, eventually};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

const GROUP: &str = "239.129.1.2";
const PORT: u16 = 5000;
const ROUNDS: u32 = 20;

fn replicating(cluster: &Cluster, network: &str) -> anyhow::Result<()> {
    cluster.host(1).network_create(network, &["--opt", "multicast=replicate"])?;
    Ok(())
}

/// A container that answers packets to the group or broadcast.
fn member(host: &Host, network: &str, name: &str) -> anyhow::Result<Container> {
    let port = PORT.to_string();
    let args = ["udp-echo", "--name", name, "--host", "h", "--port", &port, "--group", GROUP];
    host.container(name).network(network).testkit(&args)
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// How many datagrams a socket of the container has received.
fn received(container: &Container) -> anyhow::Result<u64> {
    let table = container.exec("cat", &["/proc/net/snmp"])?.success()?.stdout;
    let mut rows = table.lines().filter_map(|row| row.strip_prefix("Udp: "));
    let (names, values) = (rows.next().context("names")?, rows.next().context("values")?);
    let at = names.split(' ').position(|name| name == "InDatagrams").context("a column")?;
    Ok(values.split(' ').nth(at).context("a value")?.parse()?)
}

#[test]
fn a_datagram_to_a_group_is_heard_once_by_every_other_container_on_both_hosts() -> anyhow::Result<()>
{
    let cluster = CLUSTER.turn()?;
    replicating(&cluster, "group")?;
    let [one, two] = [cluster.host(1), cluster.host(2)];
    let asker = one.container("asker").network("group").idle()?;
    let _members = [
        member(one, "group", "a")?,
        member(one, "group", "b")?,
        member(two, "group", "c")?,
        member(two, "group", "d")?,
    ];
    cluster.settle()?;
    let everybody = ["a", "b", "c", "d"];
    let once: BTreeMap<String, u32> =
        everybody.iter().map(|name| ((*name).to_owned(), ROUNDS)).collect();
    let before = [counter(one, "replicated")?, counter(two, "replicated")?];
    let subnet = {
        let [a, b, c, _] = asker.ip()?.octets();
        format!("{a}.{b}.{c}.255:{PORT}")
    };
    for target in [format!("{GROUP}:{PORT}"), subnet, format!("255.255.255.255:{PORT}")] {
        let heard = asker.group_ask(&target, &everybody, ROUNDS)?;
        assert_eq!(heard.answers, once, "{target}");
    }
    let sent = u64::from(3 * ROUNDS);
    assert_eq!(counter(one, "replicated")? - before[0], sent, "what the container sent");
    assert_eq!(counter(two, "replicated")? - before[1], sent, "what came once through the tunnel");
    for reason in ["replicate_limit", "replicate_refused"] {
        assert_eq!((counter(one, reason)?, counter(two, reason)?), (0, 0), "{reason}");
    }
    Ok(())
}

#[test]
fn other_networks_hear_nothing_of_it() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    replicating(&cluster, "loud")?;
    replicating(&cluster, "neighbours")?;
    cluster.host(1).network_create("quiet", &[])?;
    let asker = cluster.host(1).container("asker").network("loud").idle()?;
    let strangers = [
        member(cluster.host(1), "neighbours", "n1")?,
        member(cluster.host(2), "neighbours", "n2")?,
        member(cluster.host(1), "quiet", "q1")?,
        member(cluster.host(2), "quiet", "q2")?,
    ];
    let _member = member(cluster.host(2), "loud", "far")?;
    cluster.settle()?;
    let heard = asker.group_ask(&format!("{GROUP}:{PORT}"), &["far"], ROUNDS)?;
    assert_eq!(heard.answers, BTreeMap::from([("far".to_owned(), ROUNDS)]));
    let heard = asker.group_ask(&format!("255.255.255.255:{PORT}"), &["far"], ROUNDS)?;
    assert_eq!(heard.answers, BTreeMap::from([("far".to_owned(), ROUNDS)]));
    for stranger in &strangers {
        assert_eq!(received(stranger)?, 0, "{} of another network", stranger.name());
    }
    Ok(())
}

#[test]
fn a_network_drops_groups_and_counts_them_unless_it_was_told_to_replicate() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let host = cluster.host(1);
    host.network_create("plain", &[])?;
    let asker = host.container("asker").network("plain").idle()?;
    let near = member(host, "plain", "near")?;
    cluster.settle()?;
    let before = counter(host, "multicast")?;
    asker.cannot_ask(&format!("{GROUP}:{PORT}"))?;
    eventually("the drop is counted", Duration::from_secs(5), || {
        anyhow::ensure!(counter(host, "multicast")? > before);
        Ok(())
    })?;
    assert_eq!(received(&near)?, 0);
    Ok(())
}

#[test]
fn a_container_that_came_later_hears_and_one_that_left_is_not_waited_for() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    replicating(&cluster, "changing")?;
    let asker = cluster.host(1).container("asker").network("changing").idle()?;
    let first = member(cluster.host(2), "changing", "first")?;
    cluster.settle()?;
    let target = format!("{GROUP}:{PORT}");
    asker.group_ask(&target, &["first"], 1)?;
    let _second = member(cluster.host(2), "changing", "second")?;
    cluster.settle()?;
    asker.group_ask(&target, &["first", "second"], 1)?;
    first.stop()?;
    cluster.settle()?;
    let heard = asker.group_ask(&target, &["second"], ROUNDS)?;
    assert_eq!(heard.answers, BTreeMap::from([("second".to_owned(), ROUNDS)]));
    assert_eq!(counter(cluster.host(2), "replicate_refused")?, 0);
    Ok(())
}
