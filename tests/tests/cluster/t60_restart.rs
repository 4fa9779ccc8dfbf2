//! Daemons that stop, restart and crash while traffic flows.

use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getsid},
};
use overlay::model::NodeState;
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Running, Shared,
    bpffs::{self, Object},
    cleanup, eventually,
    testkit::Resolved,
};

/// `web` has a backend on h2 and one on h3; `asker` is on h1. h4 has no container.
struct Busy {
    cluster: Cluster,
    asker: Container,
    web: [Container; 2],
    _db: Container,
}

static BUSY: Shared<Busy> = Shared::new(|| {
    let cluster = Cluster::formed(4, Options::default())?;
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
        Self::with(busy, &busy.asker)
    }

    fn with(busy: &Busy, asker: &Container) -> anyhow::Result<Self> {
        let targets: Vec<_> = busy.cluster.hosts().iter().map(|host| host.port(8080)).collect();
        let traffic = Self {
            outside: busy.cluster.client().load(&targets)?,
            inside: asker.load(&["web:80".to_owned()])?,
            chat: asker.chat("db:3306")?,
        };
        traffic.goes_on()?;
        Ok(traffic)
    }

    /// Waits until some hundred requests were made.
    fn goes_on(&self) -> anyhow::Result<()> {
        self.inside.goes_on(200)?;
        self.goes_on_without_names()
    }

    /// The same of those that ask no daemon for a name.
    fn goes_on_without_names(&self) -> anyhow::Result<()> {
        self.outside.goes_on(200)?;
        self.chat.goes_on(10)
    }

    /// No request was lost, and both backends answered.
    fn check(self) -> anyhow::Result<()> {
        self.goes_on()?;
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

/// Waits until a question, or a connection for one, waits in a socket that no daemon reads.
fn a_question_waits(asker: &Container, protocol: &str) -> anyhow::Result<()> {
    eventually("a question waits", Duration::from_secs(10), || {
        let sockets = asker.exec("cat", &[format!("/proc/net/{protocol}")])?.success()?.stdout;
        let waits = sockets.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, _, queues, ..] = words[..] else { return false };
            local.ends_with(":0035") && !queues.ends_with(":00000000")
        });
        ensure!(waits, "{sockets}");
        Ok(())
    })
}

fn maps(pins: &Path) -> anyhow::Result<BTreeSet<Object>> {
    let objects = bpffs::objects(pins)?;
    Ok(objects.into_iter().filter(|object| matches!(object, Object::Map(_))).collect())
}

fn wait_for_node(host: &Host, name: &str, ready: bool) -> anyhow::Result<()> {
    eventually("the node's state is noticed", Duration::from_secs(20), || {
        let state = host.state()?;
        let node = state.node(name).context("the node")?;
        ensure!((node.state == NodeState::Ready) == ready, "{:?}", node.state);
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
    traffic.goes_on_without_names()?;
    h2.start_agent()?;
    traffic.check()?;
    assert_eq!(maps(&h2.dirs().pins)?, before, "the maps are the same ones");
    Ok(())
}

/// The process that keeps a host's DNS sockets.
fn keeper(host: &Host) -> anyhow::Result<Pid> {
    let tag = &host.dirs().namespace;
    let keepers: Vec<_> = cleanup::tagged(|t| t == tag)
        .into_iter()
        .filter(|pid| cleanup::describe(*pid).contains("keep-sockets"))
        .collect();
    let [keeper] = keepers[..] else { bail!("{} keepers on {}", keepers.len(), host.name()) };
    Ok(keeper)
}

#[test]
fn queries_sent_while_no_daemon_runs_are_answered_by_the_next_one() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let (h1, asker) = (busy.cluster.host(1), &busy.asker);
    let vip = asker.resolve("web")?.addresses;
    for (end, start) in [(Host::kill_agent as fn(&Host) -> _, 1), (Host::stop_agent, 2)] {
        let before = keeper(h1)?;
        end(h1)?;
        let ask = |options: &[&str]| -> anyhow::Result<Resolved> {
            asker.ask(&[&["resolve", "web", "--timeout-ms", "20000"], options].concat())
        };
        let (udp, tcp) = std::thread::scope(|scope| {
            let udp = scope.spawn(|| ask(&[]));
            let tcp = scope.spawn(|| ask(&["--tcp"]));
            let waits = ["udp", "tcp"].map(|protocol| a_question_waits(asker, protocol));
            let started = h1.start_agent();
            let answers = (udp.join().expect("no panic"), tcp.join().expect("no panic"));
            waits.into_iter().collect::<anyhow::Result<()>>().and(started).map(|()| answers)
        })?;
        assert_eq!(udp?.addresses, vip, "start {start}");
        assert_eq!(tcp?.addresses, vip, "start {start}");
        assert_eq!(keeper(h1)?, before, "it outlives the daemon");
    }
    wait_for_node(h1, "h1", true)
}

#[test]
fn what_keeps_the_sockets_has_nothing_else_of_the_daemons_open() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let keeper = keeper(busy.cluster.host(1))?;
    let proc = Path::new("/proc").join(keeper.to_string());
    for entry in std::fs::read_dir(proc.join("fd"))? {
        let open = std::fs::read_link(entry?.path())?;
        let open = open.to_string_lossy();
        ensure!(open == "/dev/null" || open.starts_with("socket:"), "{open}");
    }
    assert_eq!(std::fs::read_link(proc.join("cwd"))?, Path::new("/"));
    assert_eq!(getsid(Some(keeper))?, keeper, "no terminal's signals reach it");
    Ok(())
}

#[test]
fn without_what_keeps_the_sockets_names_are_still_answered() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let h1 = busy.cluster.host(1);
    let vip = busy.asker.resolve("web")?.addresses;
    let killed = keeper(h1)?;
    kill(killed, Signal::SIGKILL)?;
    assert_eq!(busy.asker.resolve("web")?.addresses, vip);
    // The next daemon starts another.
    h1.kill_agent()?;
    h1.start_agent()?;
    assert_eq!(busy.asker.resolve("web")?.addresses, vip);
    assert_ne!(keeper(h1)?, killed);
    busy.cluster.settle()
}

#[test]
fn agents_killed_on_every_host_lose_no_request() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let traffic = Traffic::start(&busy)?;
    for host in busy.cluster.hosts().iter().rev() {
        host.kill_agent()?;
        traffic.goes_on_without_names()?;
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
    traffic.goes_on_without_names()?;
    for host in busy.cluster.hosts() {
        host.start_agent()?;
    }
    traffic.check()?;
    busy.cluster.settle()
}

#[test]
fn a_manager_that_begins_long_before_the_agents_loses_no_request() -> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let h1 = busy.cluster.host(1);
    let traffic = Traffic::start(&busy)?;
    for host in busy.cluster.hosts() {
        host.kill_agent()?;
    }
    h1.start_agent()?;
    // The wait is longer than the timeout of an agent that was heard before: one of those is down
    // meanwhile.
    let heard = busy.cluster.host(4);
    heard.start_agent()?;
    wait_for_node(h1, "h4", true)?;
    heard.kill_agent()?;
    wait_for_node(h1, "h4", false)?;
    let mut state = h1.state()?;
    for host in &busy.cluster.hosts()[1..] {
        host.start_agent()?;
    }
    state.nodes.retain(|_, node| node.name != "h4");
    traffic.check()?;
    let down: Vec<_> = state.nodes.values().filter(|n| n.state == NodeState::Down).collect();
    assert!(down.is_empty(), "{down:?}");
    busy.cluster.settle()
}

#[test]
fn a_host_whose_manager_is_gone_forwards_and_resolves_even_after_its_own_restart()
-> anyhow::Result<()> {
    let busy = BUSY.turn()?;
    let (h1, h2) = (busy.cluster.host(1), busy.cluster.host(2));
    // The client runs on a host with a running daemon: new names are not answered without one.
    let asker = busy.cluster.host(3).container("elsewhere").network("mynet").idle()?;
    // A daemon writes its state after a second without changes.
    eventually("h2 has it on its disk", Duration::from_secs(10), || {
        let state = std::fs::read_to_string(h2.dirs().state.join("last-state.json"))?;
        ensure!(state.contains("elsewhere"), "not yet");
        Ok(())
    })?;
    h1.kill_agent()?;
    let traffic = Traffic::with(&busy, &asker)?;
    h2.kill_agent()?;
    traffic.goes_on_without_names()?;
    h2.start_agent()?;
    let status = h2.status()?;
    assert!(!status.connected, "{status:?}");
    // The client is a container of h2. Its daemon knows the cluster from its disk only.
    let (own, other) = (&busy.web[0], &busy.web[1]);
    assert_eq!(own.resolve("web.2")?.addresses, [IpAddr::V4(other.ip()?)]);
    own.http_get("web:80")?;
    own.ping(&other.ip()?.to_string(), 2)?;
    traffic.check()?;
    h1.start_agent()?;
    asker.stop()?;
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
