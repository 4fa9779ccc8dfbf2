//! A connection that is idle for longer than IPVS's timeout still works.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use overlay_tests::{Client, Cluster, Options, Place};

/// The timeout of a connection in IPVS in this test: instead of its 900 s.
const FORGOTTEN_AFTER: u32 = 2;
/// How long the connections are silent. IPVS's timers are up to a second late.
const SILENCE: Duration = Duration::from_secs(6);

/// Addresses of the director and of its real server on their own wire.
const INSIDE: (Ipv4Addr, Ipv4Addr) =
    (Ipv4Addr::new(192, 168, 77, 1), Ipv4Addr::new(192, 168, 77, 2));

/// Runs a program, which has to succeed.
fn run(place: &impl Place, words: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = words.split(' ').collect();
    place.exec(words[0], &words[1..])?.success().map(drop)
}

/// A director that balances its port 3306 by IPVS to one real server, as Docker configures it.
fn director(cluster: &Cluster) -> anyhow::Result<(Client, Client)> {
    let director = cluster.outsider("director", 50)?;
    let real = cluster.behind(&director, "inside", "real", INSIDE)?;
    run(&director, "sysctl -q -w net.ipv4.ip_forward=1")?;
    run(&director, &format!("ipvsadm --set {FORGOTTEN_AFTER} {FORGOTTEN_AFTER} 0"))?;
    let address = director.address();
    run(&director, &format!("ipvsadm -A -t {address}:3306 -s rr"))?;
    run(&director, &format!("ipvsadm -a -t {address}:3306 -r {}:3306 -m", INSIDE.1))?;
    Ok((director, real))
}

#[test]
fn a_connection_that_ipvs_forgets_goes_on_through_a_vip_and_a_published_port() -> anyhow::Result<()>
{
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    h1.service_create("db", &["--network", "mynet", "-p", "3306:3306"])?;
    let _backend = h2.container("db.1").service("db").tcp_id(3306)?;
    let asker = h1.container("asker").network("mynet").idle()?;
    cluster.settle()?;
    let kept = [asker.slow_chat("db:3306", SILENCE)?, {
        cluster.client().slow_chat(&h1.port(3306), SILENCE)?
    }];
    if Path::new("/proc/net/ip_vs").exists() {
        let (director, real) = director(&cluster)?;
        let _server =
            real.serve(&["tcp-id", "--name", "real", "--host", "real", "--port", "3306"])?;
        let target = format!("{}:3306", director.address());
        let forgotten = cluster.client().slow_chat(&target, SILENCE)?.chat_ended()?;
        assert_eq!(forgotten.lines, 1, "the first line only: {forgotten:?}");
        assert!(forgotten.failure.is_some(), "{forgotten:?}");
    } else {
        println!("skipped: this kernel has no IPVS to compare with");
    }
    for chat in kept {
        // A line after a silence.
        chat.goes_on(2)?;
        let report = chat.chat_report()?;
        assert!(report.failure.is_none() && report.lines >= 2, "{report:?}");
    }
    Ok(())
}
