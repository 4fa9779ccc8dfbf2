//! Packets of every shape through the tunnel: aggregates, fragments, jumbo frames, and paths that
//! are smaller than they look.

use overlay_tests::{Cluster, Container, Host, Options, Place, Shared};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

/// Size of the transfers.
const BULK: u64 = 32 << 20;

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

fn idle_and_receiver(cluster: &Cluster, network: &str) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &[])?;
    Ok([
        cluster.host(1).container("a").network(network).idle()?,
        cluster.host(2).container("b").network(network).bulk_recv(9000)?,
    ])
}

/// A route of the first host to the second that takes no more than `mtu` bytes, while it lives.
struct SmallPath<'a> {
    cluster: &'a Cluster,
    mtu: u32,
}

impl<'a> SmallPath<'a> {
    fn new(cluster: &'a Cluster, mtu: u32) -> anyhow::Result<Self> {
        let to = cluster.host(2).address().to_string();
        let mtu_word = mtu.to_string();
        let route = ["route", "replace", &to, "dev", "eth0", "mtu", "lock", &mtu_word];
        cluster.host(1).exec("ip", &route)?.success()?;
        Ok(Self { cluster, mtu })
    }

    /// What `place` has learned of the path to `target`.
    fn is_known_to(&self, place: &impl Place, target: &str) -> anyhow::Result<()> {
        let route = place.exec("ip", &["route", "get", target])?.success()?.stdout;
        let learned = format!("mtu {}", self.mtu - 50);
        assert!(route.contains(&learned), "{route}");
        Ok(())
    }
}

impl Drop for SmallPath<'_> {
    fn drop(&mut self) {
        let to = self.cluster.host(2).address().to_string();
        let _ = self.cluster.host(1).exec("ip", &["route", "del", &to]);
    }
}

#[test]
fn a_container_learns_of_a_path_that_takes_less_than_its_interface() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = idle_and_receiver(&cluster, "small-path")?;
    let path = SmallPath::new(&cluster, 1300)?;
    let before = counter(cluster.host(1), "too_big_answered")?;
    a.bulk_send(&b.port(9000)?, BULK)?;
    assert!(counter(cluster.host(1), "too_big_answered")? > before);
    path.is_known_to(&a, &b.ip()?.to_string())
}

#[test]
fn a_client_of_a_vip_learns_of_a_small_path_to_the_backend() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("small-vip", &[])?;
    h1.service_create("receiver", &["--network", "small-vip"])?;
    let _b = cluster.host(2).container("b").service("receiver").bulk_recv(9000)?;
    let a = h1.container("a").network("small-vip").idle()?;
    let vip = a.exec("getent", &["ahostsv4", "receiver"])?.success()?.stdout;
    let vip = vip.split_whitespace().next().unwrap_or_default().to_owned();
    let path = SmallPath::new(&cluster, 1300)?;
    a.bulk_send(&format!("{vip}:9000"), BULK)?;
    path.is_known_to(&a, &vip)
}

#[test]
fn a_client_outside_learns_of_a_small_path_between_the_nodes() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("small-ingress", &[])?;
    h1.service_create("outside", &["--network", "small-ingress", "-p", "9001:9000"])?;
    let _b = cluster.host(2).container("b").service("outside").bulk_recv(9000)?;
    cluster.settle()?;
    let path = SmallPath::new(&cluster, 1300)?;
    cluster.client().bulk_send(&h1.port(9001), BULK)?;
    path.is_known_to(cluster.client(), &h1.address().to_string())
}
