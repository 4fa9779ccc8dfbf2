//! Packets of every shape through the tunnel: aggregates, fragments, jumbo frames, and paths that
//! are smaller than they look.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::ensure;
use overlay_tests::{
    Cluster, Container, Host, Options, Place, Shared, binaries, eventually, testkit, wait_listening,
};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

/// The same, with VIPs that are balanced by packets and not by sockets.
static PACKETS: Shared =
    Shared::new(|| Cluster::formed(2, Options::default().every(&["--no-socket-lb"])));

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

/// A path of at most `mtu` bytes from the first host to the second, while this value lives.
struct SmallPath<'a> {
    cluster: &'a Cluster,
    mtu: u32,
    /// Whether a router on the path limits the MTU, and not the first host's own routing table.
    behind_router: bool,
}

impl<'a> SmallPath<'a> {
    fn new(cluster: &'a Cluster, mtu: u32) -> anyhow::Result<Self> {
        let path = Self { cluster, mtu, behind_router: false };
        let to = cluster.host(2).address();
        in_shell(cluster.host(1), &format!("ip route replace {to} dev eth0 mtu lock {mtu}"))?;
        Ok(path)
    }

    /// The client outside is made the router.
    fn behind_router(cluster: &'a Cluster, mtu: u32) -> anyhow::Result<Self> {
        let path = Self { cluster, mtu, behind_router: true };
        let (to, router) = (cluster.host(2).address(), cluster.client());
        let script = format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > \
             /proc/sys/net/ipv4/conf/all/send_redirects; echo 0 > \
             /proc/sys/net/ipv4/conf/eth0/send_redirects; ip route replace {to} dev eth0 mtu lock \
             {mtu}"
        );
        in_shell(router, &script)?;
        let via = format!("ip route replace {to} via {}", router.address());
        in_shell(cluster.host(1), &via)?;
        Ok(path)
    }

    /// Transfers from `place` to `target` until it has learned the path's MTU. The programs may
    /// remember the previous path for a moment. Every transfer must arrive.
    fn is_learned_by(&self, place: &impl Place, (target, port): (&str, u16)) -> anyhow::Result<()> {
        self.is_learned_on_the_way_to(place, (target, port), target)
    }

    /// Like `is_learned`, for a request to another address than the packets' destination.
    fn is_learned_on_the_way_to(
        &self,
        place: &impl Place,
        (target, port): (&str, u16),
        way: &str,
    ) -> anyhow::Result<()> {
        eventually("the sender learns of the path", Duration::from_secs(15), || {
            if let Err(broken) = place.bulk_send(&format!("{target}:{port}"), BULK) {
                return Ok(Err(broken));
            }
            let route = place.exec("ip", &["route", "get", way])?.success()?.stdout;
            ensure!(route.contains(&format!("mtu {}", self.mtu - 50)), "{route}");
            Ok(Ok(()))
        })?
    }
}

impl Drop for SmallPath<'_> {
    fn drop(&mut self) {
        let undo = format!("ip route del {}", self.cluster.host(2).address());
        let _ = in_shell(self.cluster.host(1), &undo);
        if self.behind_router {
            let undo = format!("{undo}; echo 0 > /proc/sys/net/ipv4/ip_forward");
            let _ = in_shell(self.cluster.client(), &undo);
        }
    }
}

#[test]
fn a_container_learns_of_a_path_that_takes_less_than_its_interface() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = idle_and_receiver(&cluster, "small-path")?;
    let path = SmallPath::new(&cluster, 1300)?;
    let before = counter(cluster.host(1), "too_big_answered")?;
    path.is_learned_by(&a, (&b.ip()?.to_string(), 9000))?;
    assert!(counter(cluster.host(1), "too_big_answered")? > before);
    Ok(())
}

#[test]
fn a_container_learns_of_what_a_router_of_the_underlay_tells_the_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = idle_and_receiver(&cluster, "router-path")?;
    let path = SmallPath::behind_router(&cluster, 1300)?;
    path.is_learned_by(&a, (&b.ip()?.to_string(), 9000))
}

#[test]
fn a_client_of_a_vip_learns_of_a_small_path_to_the_backend() -> anyhow::Result<()> {
    let cluster = PACKETS.turn()?;
    let h1 = cluster.host(1);
    h1.network_create("small-vip", &[])?;
    h1.service_create("receiver", &["--network", "small-vip"])?;
    let _b = cluster.host(2).container("b").service("receiver").bulk_recv(9000)?;
    let a = h1.container("a").network("small-vip").idle()?;
    let vip = a.exec("getent", &["ahostsv4", "receiver"])?.success()?.stdout;
    let vip = vip.split_whitespace().next().unwrap_or_default().to_owned();
    let path = SmallPath::new(&cluster, 1300)?;
    path.is_learned_by(&a, (&vip, 9000))
}

#[test]
fn a_client_whose_socket_has_a_backend_learns_of_a_small_path_to_it() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    if h1.status()?.socket_programs.is_err() {
        println!("skipped: the socket programs cannot be attached here");
        return Ok(());
    }
    h1.network_create("small-socket", &[])?;
    h1.service_create("direct", &["--network", "small-socket"])?;
    let b = cluster.host(2).container("b").service("direct").bulk_recv(9000)?;
    let a = h1.container("a").network("small-socket").idle()?;
    let path = SmallPath::new(&cluster, 1300)?;
    // The client sends to the VIP, and learns the MTU of the path to the backend.
    path.is_learned_on_the_way_to(&a, ("direct", 9000), &b.ip()?.to_string())
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
    path.is_learned_by(cluster.client(), (&h1.address().to_string(), 9001))
}

fn in_shell(place: &impl Place, script: &str) -> anyhow::Result<()> {
    place.exec("sh", &["-ec", script])?.success().map(drop)
}

/// An echo server on the second host, and a client on the first.
fn asker_and_echo(cluster: &Cluster, network: &str) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &[])?;
    Ok([
        cluster.host(1).container("a").network(network).idle()?,
        cluster.host(2).container("b").network(network).udp_echo(7)?,
    ])
}

#[test]
fn datagrams_that_may_be_fragmented_cross_a_path_that_is_too_small_for_them() -> anyhow::Result<()>
{
    let cluster = CLUSTER.turn()?;
    let [a, b] = asker_and_echo(&cluster, "outer-fragments")?;
    // Sockets of this namespace send packets without DF.
    in_shell(&a, "echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc")?;
    let _path = SmallPath::new(&cluster, 1300)?;
    let said = "x".repeat(1350);
    let target = b.port(7)?;
    eventually("a datagram is fragmented", Duration::from_secs(15), || {
        let before = counter(cluster.host(1), "kernel_encap")?;
        let asked: testkit::Asked = a.ask(&["udp-ask", &target, "--say", &said])?;
        ensure!(asked.answers.len() == 1, "every one is answered: {asked:?}");
        ensure!(counter(cluster.host(1), "kernel_encap")? > before, "it was sent as it was");
        Ok(())
    })
}

#[test]
fn datagrams_of_one_call_arrive_each() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = asker_and_echo(&cluster, "segments")?;
    let segmented: testkit::Segmented = a.ask(&["udp-segment", &b.port(7)?])?;
    assert_eq!((segmented.sent, segmented.answered), (32, 32));
    Ok(())
}

#[test]
fn a_tagged_frame_crosses_between_two_hosts_with_its_tag() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = asker_and_echo(&cluster, "tags")?;
    let before =
        (counter(cluster.host(1), "kernel_encap")?, counter(cluster.host(2), "kernel_decap")?);
    let mut receiver = b.spawn(&binaries::testkit()?, &["tag-recv", "--vlan", "5"])?;
    wait_listening(&mut receiver)?;
    let send = |to: Ipv4Addr| -> anyhow::Result<testkit::Tagged> {
        let (from, to) = (a.ip()?.to_string(), to.to_string());
        a.ask(&["tag-send", "--vlan", "5", "--from", &from, "--to", &to])
    };
    send(b.ip()?)?;
    receiver.wait(Duration::from_secs(20))?.success()?;
    assert!(counter(cluster.host(1), "kernel_encap")? > before.0);
    assert!(counter(cluster.host(2), "kernel_decap")? > before.1);
    // Outside its network a tag means nothing.
    let gateway = a.attached().and_then(|c| c.interfaces[0].gateway).expect("a gateway");
    let before = counter(cluster.host(1), "unsupported_protocol")?;
    send(gateway)?;
    assert!(counter(cluster.host(1), "unsupported_protocol")? > before);
    Ok(())
}

#[test]
fn an_sctp_packet_crosses_between_two_hosts_byte_for_byte() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = asker_and_echo(&cluster, "sctp")?;
    let mut receiver = b.spawn(&binaries::testkit()?, &["sctp-recv"])?;
    wait_listening(&mut receiver)?;
    let sent: testkit::SctpPacket = a.ask(&["sctp-send", "--to", &b.ip()?.to_string()])?;
    let ended = receiver.wait(Duration::from_secs(20))?.success()?;
    let last = ended.stdout.lines().last().unwrap_or_default();
    let received: testkit::SctpPacket = serde_json::from_str(last)?;
    assert_eq!((received.bytes, received.from), (sent.bytes, Some(a.ip()?.into())));
    Ok(())
}

#[test]
fn a_tunnel_between_containers_crosses_inside_ours() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = idle_and_receiver(&cluster, "nested")?;
    for (place, own, other) in [(&a, 1, &b), (&b, 2, &a)] {
        let script = format!(
            "ip link add inner type vxlan id 9 dstport 4789 local {} remote {}; ip address add \
             192.168.99.{own}/24 dev inner; ip link set inner up",
            place.ip()?,
            other.ip()?
        );
        in_shell(place, &script)?;
    }
    let before = counter(cluster.host(1), "kernel_encap")?;
    a.ping("192.168.99.2", 2)?;
    a.bulk_send("192.168.99.2:9000", BULK)?;
    assert!(counter(cluster.host(1), "kernel_encap")? > before, "the kernel's device took some");
    Ok(())
}

/// A container forwards to a network behind it, which has the container's address.
#[test]
fn an_aggregate_that_a_container_forwards_arrives_intact() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    cluster.host(1).network_create("router", &[])?;
    let a = cluster.host(1).container("a").network("router").idle()?;
    let r = cluster.host(2).container("r").network("router").idle()?;
    let program = binaries::testkit()?;
    let behind = ["--net", &program.to_string_lossy(), "bulk-recv", "--port", "9000"];
    let mut behind = r.spawn(Path::new("unshare"), &behind)?;
    wait_listening(&mut behind)?;
    let (pid, own, sender) = (behind.pid(), r.ip()?, a.ip()?);
    let [w, x, y, z] = sender.octets();
    let script = format!(
        "ip link add v0 type veth peer name v1 netns {pid}; ip link set v0 up; ip address flush dev \
         eth0; ip address add 192.168.77.1/30 dev v0; ip route add {own} dev v0; ip route add \
         {sender} dev eth0; ip neigh add {sender} lladdr 02:42:{w:02x}:{x:02x}:{y:02x}:{z:02x} dev \
         eth0; echo 1 > /proc/sys/net/ipv4/ip_forward; inside='nsenter --target {pid} --net ip'; \
         $inside link set lo up; $inside link set v1 up; $inside address add {own}/32 dev v1; \
         $inside route add 192.168.77.1 dev v1; $inside route add default via 192.168.77.1"
    );
    in_shell(&r, &script)?;
    for features in ["tso on gso on", "tso off gso on", "tso off gso off"] {
        in_shell(&r, &format!("ethtool -K v0 {features}"))?;
        a.bulk_send(&format!("{own}:9000"), BULK)?;
    }
    Ok(())
}

fn mtu_of(container: &Container) -> anyhow::Result<String> {
    let shown = container.exec("ip", &["-o", "link", "show", "eth0"])?.success()?.stdout;
    let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    Ok(mtu.unwrap_or_default().to_owned())
}

/// Each test has its own cluster, because it needs another MTU of the underlay.
fn transfer_over(underlay_mtu: u32, container_mtu: &str) -> anyhow::Result<()> {
    let options = Options { mtu: Some(underlay_mtu), ..Options::default() };
    let cluster = Cluster::formed(2, options)?;
    let [a, b] = idle_and_receiver(&cluster, "shaped")?;
    assert_eq!((mtu_of(&a)?.as_str(), mtu_of(&b)?.as_str()), (container_mtu, container_mtu));
    a.bulk_send(&b.port(9000)?, BULK)?;
    // The largest datagram that fits, and one in fragments.
    let fits = container_mtu.parse::<usize>()? - 28;
    for size in [fits, fits + 1, 3 * fits] {
        let ping = ["ping", &b.ip()?.to_string(), "--size", &size.to_string()];
        let pinged: testkit::Pinged = a.ask(&ping)?;
        assert_eq!(pinged.answered, 1, "{size} bytes");
    }
    Ok(())
}

#[test]
fn containers_on_a_jumbo_underlay_have_jumbo_interfaces() -> anyhow::Result<()> {
    transfer_over(9000, "8950")
}

#[test]
fn containers_on_an_underlay_below_ethernets_mtu_have_smaller_ones() -> anyhow::Result<()> {
    transfer_over(1400, "1350")
}

#[test]
fn traffic_between_containers_takes_the_data_path_addresses() -> anyhow::Result<()> {
    let cluster = Cluster::new(2, Options::default())?;
    let own = |number: usize| format!("172.16.2.{}", 9 + number);
    for number in [1, 2] {
        let add = format!("ip address add {}/24 dev eth0", own(number));
        in_shell(cluster.host(number), &add)?;
    }
    let [h1, h2] = [cluster.host(1), cluster.host(2)];
    let data_path = |number: usize| ["--data-path-addr".to_owned(), own(number)];
    let token = h1.init(&data_path(1))?;
    h2.join(&token, h1, &data_path(2))?;
    h1.sync()?;
    let [a, b] = idle_and_receiver(&cluster, "apart")?;
    for (host, other) in [(h1, 2), (h2, 1)] {
        let peers = host.overlay(&["bpf", "peers"])?.stdout;
        assert!(peers.contains(&own(other)), "{peers}");
        assert!(!peers.contains("172.16.1."), "{peers}");
    }
    a.bulk_send(&b.port(9000)?, BULK)?;
    let neighbour = h1.exec("ip", &["neigh", "show", &own(2)])?.success()?.stdout;
    assert!(neighbour.contains("lladdr"), "{neighbour}");
    Ok(())
}
