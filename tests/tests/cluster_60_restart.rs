//! Daemons that stop, restart and crash while traffic flows.

use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Running, Shared,
    bpffs::{self, Object},
    eventually,
};

/// `web` has a backend on h2 and one on h3; `asker` is on h1.
struct Busy {
    cluster: Cluster,
    asker: Container,
    web: [Container; 2],
    _db: Container,
}

static BUSY: Shared<Busy> = Shared::new(|| {
    let cluster = Cluster::formed(3, Options::default())?;
    let h1 = cluster.host(1);
    h1.network_create("mynet", &[])?;
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80", "--drain", "500ms"])?;
    let web = [
        cluster.host(2).container("web.1").service("web").http(80)?,
        cluster.host(3).container("web.2").service("web").http(80)?,
    ];
    let db = cluster.host(3).container("db").network("mynet").tcp_id(3306)?;
    let asker = h1.container("asker").network("mynet").idle()?;
    Ok(Busy { cluster, asker, web, _db: db })
});

/// Requests from outside through every host and from a container through the VIP, and a
/// conversation over one connection between two hosts.
struct Traffic {
    outside: Running,
    inside: Running,
    chat: Running,
}

impl Traffic {
    fn start(busy: &Busy) -> anyhow::Result<Self> {
        let targets: Vec<_> = busy.cluster.hosts().iter().map(|host| host.port(8080)).collect();
        let traffic = Self {
            outside: busy.cluster.client().load(&targets)?,
            inside: busy.asker.load(&["web:80".to_owned()])?,
            chat: busy.asker.chat("db:3306")?,
        };
        pause();
        Ok(traffic)
    }

    /// Nothing was lost, and both backends answered.
    fn check(self) -> anyhow::Result<()> {
        pause();
        for load in [self.outside, self.inside] {
            let report = load.load_report()?;
            assert_eq!(report.failures(), 0, "{report:?}");
            let names: Vec<_> = report.answered_by.keys().map(String::as_str).collect();
            assert_eq!(names, ["web.1", "web.2"]);
        }
        let chat = self.chat.chat_report()?;
        assert!(chat.failure.is_none() && chat.lines > 10, "{chat:?}");
        Ok(())
    }
}

/// Long enough that some hundred requests are made.
fn pause() {
    std::thread::sleep(Duration::from_millis(800));
}

fn maps(pins: &Path) -> anyhow::Result<BTreeSet<Object>> {
    let objects = bpffs::objects(pins)?;
    Ok(objects.into_iter().filter(|object| matches!(object, Object::Map(_))).collect())
}

fn wait_for_node(host: &Host, name: &str, ready: bool) -> anyhow::Result<()> {
    eventually("the node's state is noticed", Duration::from_secs(20), || {
        let state = host.state()?;
        let node = state.node(name).context("the node")?;
        ensure!((node.state == overlay::model::NodeState::Ready) == ready, "{:?}", node.state);
        Ok(())
    })
}

#[test]
fn a_restarted_agent_loses_no_request_and_adopts_the_maps() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let h2 = busy.cluster.host(2);
    let before = maps(&h2.dirs().pins)?;
    assert!(!before.is_empty());
    let traffic = Traffic::start(&busy)?;
    h2.stop_agent()?;
    pause();
    h2.start_agent()?;
    traffic.check()?;
    assert_eq!(maps(&h2.dirs().pins)?, before, "the maps are the same ones");
    Ok(())
}

#[test]
fn agents_killed_on_every_host_lose_no_request() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let traffic = Traffic::start(&busy)?;
    for host in busy.cluster.hosts().iter().rev() {
        host.kill_agent()?;
        pause();
        host.start_agent()?;
    }
    traffic.check()?;
    busy.cluster.settle()
}

#[test]
fn all_agents_down_at_once_lose_no_request() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let traffic = Traffic::start(&busy)?;
    for host in busy.cluster.hosts() {
        host.kill_agent()?;
    }
    pause();
    for host in busy.cluster.hosts() {
        host.start_agent()?;
    }
    traffic.check()?;
    busy.cluster.settle()
}

#[test]
fn a_host_whose_manager_is_gone_forwards_and_resolves_even_after_its_own_restart()
-> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let (h1, h2) = (busy.cluster.host(1), busy.cluster.host(2));
    h1.kill_agent()?;
    let traffic = Traffic::start(&busy)?;
    h2.kill_agent()?;
    pause();
    h2.start_agent()?;
    let status = h2.status()?;
    assert!(!status.connected, "{status:?}");
    // From a container of h2, whose daemon knows the cluster from its disk only.
    let (own, other) = (&busy.web[0], &busy.web[1]);
    assert_eq!(own.resolve("web.2")?.addresses, [IpAddr::V4(other.ip()?)]);
    own.http_get("web:80")?;
    own.ping(&other.ip()?.to_string(), 2)?;
    traffic.check()?;
    h1.start_agent()?;
    wait_for_node(h1, "h2", true)?;
    busy.cluster.settle()
}

#[test]
fn agents_follow_a_restarted_manager() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let (h1, h3) = (busy.cluster.host(1), busy.cluster.host(3));
    h1.stop_agent()?;
    h1.start_agent()?;
    for name in ["h2", "h3"] {
        wait_for_node(h1, name, true)?;
    }
    h1.network_create("later", &[])?;
    let a = h1.container("a").network("later").idle()?;
    let b = h3.container("b").network("later").idle()?;
    a.ping("b", 2)?;
    b.stop()?;
    a.stop()?;
    h1.overlay(&["network", "rm", "later"]).map(drop)
}

#[test]
fn what_changed_while_an_agent_was_away_is_caught_up_with() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let (h1, h2, h3) = (busy.cluster.host(1), busy.cluster.host(2), busy.cluster.host(3));
    let before = h3.container("before").network("mynet").idle()?;
    let watcher = h2.container("watcher").network("mynet").idle()?;
    watcher.ping("before", 1)?;
    h2.kill_agent()?;
    wait_for_node(h1, "h2", false)?;
    before.stop()?;
    let after = h3.container("after").network("mynet").idle()?;
    h2.start_agent()?;
    wait_for_node(h1, "h2", true)?;
    busy.cluster.settle()?;
    watcher.ping("after", 2)?;
    assert_eq!(watcher.resolve("before")?.addresses, Vec::<IpAddr>::new());
    after.stop()?;
    watcher.stop().map(drop)
}

#[test]
fn backends_on_a_dead_node_are_not_picked() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let (h1, h3) = (busy.cluster.host(1), busy.cluster.host(3));
    h3.kill_agent()?;
    wait_for_node(h1, "h3", false)?;
    eventually("only the backend of h2 is picked", Duration::from_secs(10), || {
        let answers = busy.asker.http_get_many("web:80", 10)?;
        ensure!(answers.iter().all(|a| a.name == "web.1"), "{answers:?}");
        Ok(())
    })?;
    h3.start_agent()?;
    wait_for_node(h1, "h3", true)?;
    busy.cluster.settle()?;
    let answers = busy.asker.http_get_many("web:80", 10)?;
    assert!(answers.iter().any(|a| a.name == "web.2"), "{answers:?}");
    Ok(())
}
