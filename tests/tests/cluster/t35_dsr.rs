//! `--return direct`: replies of published ports go from the backend's host straight to the client.

use std::net::IpAddr;

use overlay_tests::{Cluster, Container, Host, Options, Place as _, testkit::Asked};

/// A host without a backend and one with all of them.
struct Direct {
    cluster: Cluster,
    _backends: Vec<Container>,
}

fn direct(options: Options) -> anyhow::Result<Direct> {
    let cluster = Cluster::formed(2, options)?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    let services =
        [("web", "8080:80"), ("echo", "5007:7/udp"), ("bulk", "9000:9001"), ("db", "3306:3306")];
    for (service, port) in services {
        h1.service_create(service, &["--network", "mynet", "-p", port, "--return", "direct"])?;
    }
    let _backends = vec![
        h2.container("web.1").service("web").http(80)?,
        h2.container("web.2").service("web").http(80)?,
        h2.container("echo.1").service("echo").udp_echo(7)?,
        h2.container("bulk.1").service("bulk").bulk_recv(9001)?,
        h2.container("db.1").service("db").tcp_id(3306)?,
    ];
    // What the last one has begun to serve, the other host knows too.
    cluster.settle()?;
    Ok(Direct { cluster, _backends })
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// Packets of replies that a host has sent on to clients, by TC or by XDP.
fn passed_on(host: &Host) -> anyhow::Result<u64> {
    Ok(counter(host, "sent_to_client")? + counter(host, "xdp_sent_to_client")?)
}

/// Asks with datagrams of `length` bytes from one socket.
fn datagrams(cluster: &Cluster, length: usize, count: u32) -> anyhow::Result<Asked> {
    let (say, count) = ("x".repeat(length), count.to_string());
    let target = cluster.host(1).port(5007);
    cluster.client().ask(&["udp-ask", &target, "--say", &say, "--count", &count])
}

fn works(options: Options) -> anyhow::Result<Direct> {
    let direct = direct(options)?;
    let Direct { cluster, .. } = &direct;
    let (h1, h2, client) = (cluster.host(1), cluster.host(2), cluster.client());
    let real = IpAddr::V4(client.address());

    // A transfer of which only the client's part goes through the host that was asked.
    client.bulk_send(&h1.port(9000), 32 << 20)?;
    let (by_h1, by_h2) = (passed_on(h1)?, counter(h2, "sent_dsr")?);
    assert!(by_h1 <= 4, "the first answer, and one more for each time it was lost: {by_h1}");
    assert!(by_h2 > 100, "acknowledgements: {by_h2}");

    let answers = client.http_get_many(&h1.port(8080), 20)?;
    assert!(answers.iter().all(|a| a.client == real), "{answers:?}");
    assert!(counter(h2, "sent_dsr")? > by_h2);
    let answers = client.http_get_many(&h2.port(8080), 20)?;
    assert!(answers.iter().all(|a| a.client == real), "{answers:?}");

    // Also in fragments, of which the first answer's take both ways.
    for length in [10, 1_400, 9_000] {
        let asked = datagrams(cluster, length, 6)?;
        assert_eq!((asked.answers.len(), asked.failures.len()), (6, 0), "{asked:?}");
    }

    // The hosts themselves, which only the host that was asked has a way to.
    for (from, to) in [(h1, h2), (h2, h1), (h1, h1), (h2, h2)] {
        let answer = from.http_get(&to.port(8080))?;
        if from.name() != to.name() {
            assert_eq!(answer.client, IpAddr::V4(from.address()));
        }
        from.udp_ask_many(&to.port(5007), 3)?;
    }
    Ok(direct)
}

#[test]
fn replies_leave_from_the_backends_host_with_xdp_off() -> anyhow::Result<()> {
    let Direct { cluster, .. } = works(Options::xdp("off"))?;
    assert_eq!(counter(cluster.host(1), "xdp_encapsulated")?, 0);
    Ok(())
}

#[test]
fn replies_leave_from_the_backends_host_with_native_xdp() -> anyhow::Result<()> {
    let Direct { cluster, .. } = works(Options::xdp("native"))?;
    assert!(counter(cluster.host(1), "xdp_encapsulated")? > 0);
    Ok(())
}

#[test]
fn a_client_that_was_refused_hears_of_it_from_the_port_that_it_asked() -> anyhow::Result<()> {
    let Direct { cluster, _backends } = direct(Options::default())?;
    let h1 = cluster.host(1);
    h1.overlay(&["service", "update", "echo", "--publish-add", "5008:8/udp"])?;
    h1.overlay(&["service", "update", "web", "--publish-add", "8081:81"])?;
    cluster.settle()?;
    let target = h1.port(5008);
    let asked: Asked =
        cluster.client().ask(&["udp-ask", &target, "--count", "3", "--connected"])?;
    let refused = |asked: &Asked| {
        asked.answers.is_empty() && asked.failures.iter().all(|f| f.message.contains("refused"))
    };
    assert!(asked.failures.len() == 3 && refused(&asked), "{asked:?}");
    let asked: Asked = cluster.client().ask(&["tcp-get", &h1.port(8081)])?;
    assert!(asked.failures.len() == 1 && refused(&asked), "{asked:?}");
    Ok(())
}

#[test]
fn the_way_back_is_changed_under_load_and_nothing_is_lost() -> anyhow::Result<()> {
    let Direct { cluster, _backends } = direct(Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let load = cluster.client().load(&[h1.port(8080), h2.port(8080)])?;
    let chat = cluster.client().chat(&h1.port(3306))?;
    for way in ["asked", "direct", "asked", "direct"] {
        for service in ["web", "db"] {
            h1.overlay(&["service", "update", service, "--return", way])?;
        }
        cluster.settle()?;
        load.goes_on(200)?;
        chat.goes_on(10)?;
    }
    assert!(load.load_report()?.all_answered()? > 100);
    let chat = chat.chat_report()?;
    assert!(chat.failure.is_none() && chat.lines > 0, "{chat:?}");
    assert!(counter(h2, "sent_dsr")? > 0);
    let inspected = h1.overlay(&["service", "inspect", "web"])?;
    assert!(inspected.stdout.contains("\"Return\": \"direct\""));
    Ok(())
}
