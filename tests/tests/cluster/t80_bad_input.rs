//! Bad input: each gives a clear error on stderr with a remedy, a non-zero exit status, and no
//! partial changes.

use std::{process::Command, time::Duration};

use anyhow::ensure;
use overlay_tests::{
    Cluster, Host, Options, Place as _, Shared, binaries, eventually, process, refusal,
};

/// h1 is a cluster by itself; h2 is in none.
static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::new(2, Options::default())?;
    cluster.host(1).init(&[])?;
    cluster.host(1).network_create("mynet", &["--subnet", "10.50.0.0/24"])?;
    Ok(cluster)
});

/// Each command is rejected with all of its words, and the cluster's state does not change.
fn refused(host: &Host, cases: &[(&[&str], &[&str])]) -> anyhow::Result<()> {
    for (args, words) in cases {
        let before = host.state()?.revision;
        host.refuses(args, words)?;
        ensure!(host.state()?.revision == before, "{args:?} changed something");
    }
    let containers = host.containers()?;
    ensure!(containers.is_empty(), "{containers:?}");
    let links = host.exec("ip", &["-brief", "link"])?.success()?.stdout;
    let endpoint = links.lines().find(|l| l.starts_with("ov") && !l.starts_with("ovl-"));
    ensure!(endpoint.is_none(), "{links}");
    Ok(())
}

/// The host is as if `overlay` had never run there.
fn untouched(host: &Host) -> anyhow::Result<()> {
    let left = host.leftovers()?;
    ensure!(left.is_empty(), "{left:?}");
    for file in ["agent.json", "cluster.redb", "pki", "containers.json"] {
        ensure!(!host.dirs().state.join(file).exists(), "{file} is left");
    }
    Ok(())
}

fn init<'a>(host: &'a Host, args: &[&'a str]) -> Vec<&'a str> {
    [&["init", "--name", host.name()], args].concat()
}

#[test]
fn an_unknown_network_is_named() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let words: &[&str] = &["nowhere", "network ls"];
    refused(
        cluster.host(1),
        &[
            (&["run", "--network", "nowhere", "--", "true"], words),
            (&["service", "create", "s", "--network", "nowhere"], words),
            (&["network", "rm", "nowhere"], words),
            (&["run", "--service", "nothing", "--", "true"], &["nothing", "service ls"]),
            (&["service", "rm", "nothing"], &["nothing", "service ls"]),
            (&["service", "update", "nothing", "--publish-add", "1:1"], &["nothing"]),
            (&["node", "drain", "nobody"], &["nobody", "node ls"]),
            (&["endpoint", "detach", "nobody"], &["nobody"]),
            (&["run", "--network", "container:nobody", "--", "true"], &["nobody"]),
        ],
    )?;
    // inspect shows all results, here an empty list.
    let inspect = cluster.host(1).try_overlay(&["network", "inspect", "nowhere"])?.failure()?;
    assert!(inspect.stderr.contains("nowhere"), "{}", inspect.describe());
    Ok(())
}

#[test]
fn duplicate_names_and_ports_are_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    h1.service_create("twice", &["--network", "mynet", "-p", "8080:80", "-p", "53:53/udp"])?;
    let cases: &[(&[&str], &[&str])] = &[
        (&["network", "create", "mynet"], &["mynet", "exists"]),
        (&["network", "create", "ingress"], &["ingress"]),
        (&["network", "create", "--ingress", "another"], &["ingress"]),
        (&["service", "create", "twice", "--network", "mynet"], &["twice", "exists"]),
        (&["service", "create", "s", "--network", "mynet", "-p", "8080:81"], &["8080", "twice"]),
        (&["service", "create", "s", "--network", "mynet", "-p", "53:1/udp"], &["53", "twice"]),
        (
            &["service", "create", "s", "--network", "mynet", "-p", "9:1", "-p", "9:2"],
            &["9", "twice"],
        ),
        (&["run", "--network", "mynet", "-p", "8080:1", "--", "true"], &["8080", "twice"]),
    ];
    refused(h1, cases)?;
    // The same number for the other protocol is another port.
    h1.service_create("other", &["--network", "mynet", "-p", "8080:80/udp"])?;
    h1.overlay(&["service", "rm", "other"])?;

    let web = h1.container("web").network("mynet").idle()?;
    h1.refuses(&["run", "--network", "mynet", "--name", "web", "--", "true"], &["web", "mynet"])?;
    // An alias may be shared, as in Docker.
    h1.overlay(&["run", "--network", "mynet", "--alias", "web", "--", "true"])?;
    assert_eq!(h1.containers()?.len(), 1);
    web.stop()?;
    h1.overlay(&["service", "rm", "twice"]).map(drop)
}

#[test]
fn subnets_that_overlap_and_addresses_that_do_not_fit_are_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let create = |args: &[&'static str]| [&["network", "create", "n"], args].concat();
    let run =
        |args: &[&'static str]| [&["run", "--network", "mynet"], args, &["--", "true"]].concat();
    let cases = [
        (create(&["--subnet", "10.50.0.128/25"]), vec!["10.50.0.128/25", "mynet"]),
        (create(&["--subnet", "10.50.0.0/16"]), vec!["10.50.0.0/16", "mynet"]),
        (create(&["--subnet", "10.255.0.0/24"]), vec!["10.255.0.0/24", "ingress"]),
        (create(&["--subnet", "172.17.3.0/24"]), vec!["172.17.3.0/24", "bridge"]),
        (create(&["--subnet", "10.51.0.0/32"]), vec!["10.51.0.0/32"]),
        (create(&["--subnet", "10.51.0.0/24", "--gateway", "10.52.0.1"]), vec!["10.52.0.1"]),
        (create(&["--subnet", "10.51.0.0/24", "--ip-range", "10.52.0.0/25"]), vec!["10.52.0.0/25"]),
        (create(&["--subnet", "10.51.0.0/24", "--aux-address", "a=10.52.0.1"]), vec!["10.52.0.1"]),
        (create(&["--opt", "com.docker.network.driver.overlay.vxlanid_list=4096"]), vec!["4096"]),
        (run(&["--ip", "10.51.0.9"]), vec!["10.51.0.9", "10.50.0.0/24"]),
        (run(&["--ip", "10.50.0.1"]), vec!["10.50.0.1"]),
        (run(&["--ip", "10.50.0.255"]), vec!["10.50.0.255"]),
    ];
    let cases: Vec<(&[&str], &[&str])> = cases.iter().map(|(a, w)| (&a[..], &w[..])).collect();
    refused(cluster.host(1), &cases)
}

#[test]
fn a_full_subnet_is_told_and_has_room_again_when_a_container_ends() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    // Four addresses: the network's, the gateway's, one container's, broadcast.
    h1.network_create("tiny", &["--subnet", "10.60.0.0/30"])?;
    let only = h1.container("only").network("tiny").idle()?;
    assert_eq!(only.ip()?.to_string(), "10.60.0.2");
    let words = ["tiny", "10.60.0.0/30", "no free address"];
    h1.refuses(&["run", "--network", "tiny", "--name", "more", "--", "true"], &words)?;
    h1.refuses(&["service", "create", "s", "--network", "tiny"], &words)?;
    assert_eq!(h1.containers()?.len(), 1, "nothing half-made");
    only.stop()?;
    h1.container("next").network("tiny").idle()?.stop()?;
    h1.overlay(&["network", "rm", "tiny"]).map(drop)
}

#[test]
fn malformed_addresses_ports_and_names_are_quoted() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let cases: &[(&[&str], &[&str])] = &[
        (&["network", "create", "n", "--subnet", "10.1.0/24"], &["10.1.0/24"]),
        (&["network", "create", "n", "--subnet", "10.1.0.7/24"], &["10.1.0.7/24", "10.1.0.0/24"]),
        (&["network", "create", "n", "--gateway", "10.1.0"], &["10.1.0"]),
        (&["network", "create", "a b"], &["a b"]),
        (&["network", "create", "n", "--opt", "encrypted"], &["encrypted", "not built"]),
        (&["network", "create", "n", "--opt", "color=red"], &["color"]),
        (&["network", "create", "n", "-d", "macvlan"], &["macvlan"]),
        (&["service", "create", "s", "-p", "99999:80"], &["99999"]),
        (&["service", "create", "s", "-p", "0:80"], &["port 0"]),
        (&["service", "create", "s", "-p", "80:80/icmp"], &["icmp"]),
        (&["service", "create", "s", "-p", "127.0.0.1:80:80"], &["127.0.0.1:80:80"]),
        (&["run", "--network", "mynet", "--ip", "10.50.0", "--", "true"], &["10.50.0"]),
        (&["run", "--network", "mynet", "-p", "x", "--", "true"], &["\"x\""]),
        (&["service", "create", "s", "--endpoint-mode", "dnsrr", "-p", "80:80"], &["dnsrr", "80"]),
        (&["token", "create", "--ttl", "soon"], &["soon"]),
        (&["token", "rm", "nothing"], &["nothing"]),
    ];
    refused(cluster.host(1), cases)?;
    let h2 = cluster.host(2);
    for (args, words) in [
        (&["--advertise-addr", "172.16.1"][..], &["172.16.1"][..]),
        (&["--advertise-addr", "172.16.1.99"], &["172.16.1.99", "172.16.1.11"]),
        (&["--iface", "eth7"], &["eth7"]),
        (&["--data-path-port", "99"], &["99", "1024"]),
        (&["--default-addr-pool", "10.0.0.0"], &["10.0.0.0"]),
        (&["--xdp", "fast"], &["fast"]),
        (&["--cgroup", "/nowhere"], &["/nowhere"]),
        (&["--name", "-"], &["name"]),
    ] {
        h2.refuses(&[&["init"], args].concat(), words)?;
        untouched(h2)?;
    }
    Ok(())
}

#[test]
fn wrong_and_expired_tokens_join_nothing() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let token = |args: &[&str]| -> anyhow::Result<String> {
        let printed = h1.overlay(&[&["token", "create"], args].concat())?.stdout;
        let mut words = printed.split_whitespace().skip_while(|word| *word != "--token");
        Ok(words.nth(1).unwrap_or_default().to_owned())
    };
    let join = |token: &str, words: &[&str]| -> anyhow::Result<()> {
        h2.refuses(&["join", "--token", token, "172.16.1.10", "--name", "h2"], words)?;
        untouched(h2)?;
        ensure!(h1.state()?.nodes.len() == 1, "the cluster has {:?}", h1.state()?.nodes);
        Ok(())
    };
    let good = token(&[])?;
    join("nonsense", &["token"])?;
    // One character of the secret, at the end, is another.
    let (rest, last) = good.split_at(good.len() - 1);
    join(&format!("{rest}{}", if last == "a" { "b" } else { "a" }), &["token"])?;
    // A token that was removed.
    let removed = token(&[])?;
    let tokens: serde_json::Value = h1.overlay(&["token", "ls", "--format", "json"])?.json()?;
    let newest = tokens.as_array().into_iter().flatten().max_by_key(|t| t["created"].to_string());
    let id = newest.and_then(|t| t["id"].as_str()).unwrap_or_default().to_owned();
    h1.overlay(&["token", "rm", &id])?;
    join(&removed, &["token"])?;
    let short = token(&["--ttl", "1s"])?;
    std::thread::sleep(Duration::from_millis(1200));
    join(&short, &["expired", "token create"])?;
    // A token of another cluster carries the digest of another CA.
    let other = Cluster::new(1, Options::default())?;
    let foreign = other.host(1).init(&[])?;
    join(&foreign, &["CA"])?;
    // Nobody there.
    h2.refuses(&["join", "--token", &good, "172.16.1.99", "--name", "h2"], &["172.16.1.99"])?;
    untouched(h2)?;
    // A name and an address that the cluster has already.
    h2.refuses(&["join", "--token", &good, "172.16.1.10", "--name", "h1"], &["h1"])?;
    untouched(h2)
}

#[test]
fn damaged_newer_and_stale_state_files_are_told_apart() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    h2.refuses(&["agent"], &["overlay init", "overlay join"])?;
    h2.refuses(&["status"], &["overlay"])?;
    h2.overlay(&init(h2, &["--no-start"]))?;
    let config = h2.dirs().state.join("agent.json");
    let good = std::fs::read_to_string(&config)?;
    for (text, words) in [
        (&good[..good.len() / 2], &["agent.json", "damaged"][..]),
        ("{\"format\": 99}", &["agent.json", "99"]),
    ] {
        std::fs::write(&config, text)?;
        h2.refuses(&["agent"], words)?;
        assert_eq!(h2.leftovers()?, Vec::<String>::new());
    }
    std::fs::write(&config, &good)?;
    std::fs::write(h2.dirs().state.join("cluster.redb"), "not a database")?;
    h2.refuses(&["agent"], &["cluster.redb"])?;
    assert_eq!(h2.leftovers()?, Vec::<String>::new());
    // Files left from an earlier cluster are rejected.
    std::fs::remove_file(&config)?;
    h2.refuses(&init(h2, &[]), &["left from an earlier cluster", "leave --force"])?;
    h2.leave(true)?;
    untouched(h2)
}

#[test]
fn files_of_a_daemon_that_is_gone_do_not_keep_the_next_one_from_starting() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    h2.init(&[])?;
    h2.kill_agent()?;
    std::fs::write(h2.dirs().state.join("last-state.json"), "{ damaged")?;
    assert!(h2.dirs().socket().exists());
    h2.start_agent()?;
    h2.leave(true)?;
    untouched(h2)
}

#[test]
fn a_second_agent_and_a_second_cluster_on_one_host_are_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    let pid = h1.agent_pid()?.to_string();
    h1.refuses(&["agent"], &["another overlay daemon", &pid])?;
    h1.refuses(&init(h1, &[]), &["in a cluster already", "overlay leave"])?;
    // Other directories do not make it another host.
    let dir = cluster.instance().dir.join("second");
    let pins = cluster.instance().pin_dir().join("second");
    let mut command = h1.command(binaries::overlay()?);
    command.arg("--state-dir").arg(dir.join("state")).arg("--run-dir").arg(dir.join("run"));
    command.arg("--pin-dir").arg(&pins).args(init(h1, &["--listen-port", "2400"]));
    refusal(&process::run(command)?, &["ovl-", "one daemon"])?;
    assert!(!dir.join("state").join("agent.json").exists() && !pins.exists());
    // The first one has not noticed.
    assert_eq!(h1.agent_pid()?.to_string(), pid);
    h1.container("fine").network("mynet").idle()?.stop().map(drop)
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let mut vxlan = h2.serve(&["udp-echo", "--name", "squatter", "--port", "4789"])?;
    h2.refuses(&init(h2, &[]), &["4789", "taken", "--data-path-port"])?;
    vxlan.kill();
    untouched(h2)?;
    let mut manager = h2.serve(&["tcp-id", "--name", "squatter", "--port", "2377"])?;
    h2.refuses(&init(h2, &[]), &["2377", "--listen-port"])?;
    manager.kill();
    untouched(h2)
}

/// Runs `overlay init` on a host through another program, as in `setarch … overlay init`.
fn init_through(host: &Host, wrapper: &[&str], words: &[&str]) -> anyhow::Result<()> {
    let mut command: Command = host.command(wrapper[0]);
    command.args(&wrapper[1..]).arg(binaries::overlay()?).args(host.dirs().arguments());
    command.args(init(host, &[]));
    refusal(&process::run(command)?, words)?;
    untouched(host)
}

#[test]
fn a_missing_capability_is_named() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let without = ["setpriv", "--bounding-set=-bpf,-net_admin"];
    init_through(h2, &without, &["CAP_BPF", "CAP_NET_ADMIN", "root"])?;
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    init_through(h2, &nobody, &["root"])
}

#[test]
fn a_kernel_that_is_too_old_is_named_with_the_one_needed() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    init_through(cluster.host(2), &["setarch", "--uname-2.6"], &["kernel is 2.6", "6.1"])
}

#[test]
fn a_pin_directory_outside_bpffs_is_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    let dir = cluster.instance().dir.join("pins");
    let pins = dir.to_string_lossy().into_owned();
    h2.refuses(&init(h2, &["--pin-dir", &pins]), &["bpffs", &pins, "mount"])?;
    assert!(!dir.exists());
    untouched(h2)
}

#[test]
fn a_host_without_bpffs_where_it_cannot_be_mounted_is_told() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h2 = cluster.host(2);
    // Runs in its own mount namespace, with another file system at /sys/fs/bpf.
    let script = "mount --make-rprivate / && mount -t tmpfs -o ro none /sys/fs/bpf && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    init_through(
        h2,
        &[&wrapper[..], &["setpriv", "--bounding-set=-sys_admin"]].concat(),
        &["CAP_SYS_ADMIN"],
    )?;
    // With the right to mount, `overlay` mounts it.
    let mut command = h2.command(wrapper[0]);
    command.args(&wrapper[1..]).arg(binaries::overlay()?).args(h2.dirs().arguments());
    command.args(init(h2, &["--no-start"]));
    process::run(command)?.success()?;
    h2.leave(true)?;
    untouched(h2)
}

#[test]
fn a_command_that_does_not_exist_leaves_no_container() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    let output =
        h1.try_overlay(&["run", "--network", "mynet", "--", "there-is-no-such-command"])?;
    assert_eq!(output.status.code(), Some(127), "{}", output.describe());
    assert!(output.stderr.contains("there-is-no-such-command"), "{}", output.describe());
    eventually("nothing of it is left", Duration::from_secs(10), || {
        ensure!(h1.containers()?.is_empty(), "{:?}", h1.containers()?);
        Ok(())
    })
}
