//! A web server and its clients, as in common benchmarks: nginx at the backends, wrk at the
//! clients, both Debian's.

use std::{
    fmt,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::{
    super::{
        pin::{NOBODY, Placement},
        rig::Spot,
    },
    cases::Value,
};
use crate::{Place as _, eventually, process::Process};

/// The programs, and the Debian packages of the same names.
pub const PROGRAMS: [(&str, &str); 2] = [("nginx", "nginx"), ("wrk", "wrk")];

/// The server's port, behind those of the traffic program.
pub const PORT: u16 = 7005;

/// Bytes of the page.
const PAGE: usize = 1024;

/// How many connections wrk has at a time.
const CONNECTIONS: u32 = 16;

/// The duration of a run, which wrk takes in whole seconds.
const SECONDS: u32 = 2;

/// Whether connections are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Request after request over one connection (HTTP keep-alive).
    Kept,
    /// A connection for each request.
    Each,
}

/// One process only, because nginx's workers have no environment, by which the harness finds its
/// own processes. Every path is below the folder that it is started in. It never closes a
/// connection that wrk would keep, and writes no log of requests.
fn configuration() -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|module| format!("    {module}_temp_path temporary;\n"))
        .concat();
    format!(
        "daemon off;\n\
         master_process off;\n\
         pid nginx.pid;\n\
         error_log stderr warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         {temporary}    access_log off;\n    \
         keepalive_requests 1000000000;\n    \
         open_file_cache max=16;\n    \
         server {{ listen {PORT} backlog=4096; root .; location = /index.html {{ }} }}\n\
         }}\n"
    )
}

/// Starts nginx at a place, in its own folder, and waits until it listens.
///
/// # Errors
/// It does not listen; the error has its output.
pub fn serve(spot: &Spot, folder: &Path, placement: Placement) -> anyhow::Result<Process> {
    std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    chown(folder, Some(NOBODY), Some(NOBODY))?;
    for (name, content) in
        [("nginx.conf", configuration().into_bytes()), ("index.html", vec![b'o'; PAGE])]
    {
        std::fs::write(folder.join(name), content).with_context(|| name.to_owned())?;
    }
    let bench = std::env::current_exe().context("the path of this program")?;
    let (cpu, folder) = (placement.server_cpu().to_string(), folder.to_string_lossy());
    let pinned = ["pinned", "--cpu", &cpu, "--side", "server", "--nobody", "--folder", &folder];
    let nginx = ["nginx", "-p", "./", "-c", "nginx.conf", "-e", "stderr"];
    let mut process = spot.spawn(&bench, &[&pinned[..], &["--"], &nginx].concat())?;
    let ended = eventually("nginx listens", Duration::from_secs(20), || {
        // One that has ended will not: stop waiting.
        if let Err(ended) = process.check_running() {
            return Ok(Some(ended));
        }
        // The table of its namespace; the pid is nginx's, since nsenter and this program have
        // become nginx.
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", process.pid()))?;
        ensure!(listens(&table), "it printed: {}", process.output().trim_end());
        Ok(None)
    })?;
    ended.map_or(Ok(process), Err)
}

/// Whether the kernel's table of TCP sockets has one that listens on [`PORT`]: local address in
/// hexadecimal, remote address, state (0A is `TCP_LISTEN`).
fn listens(table: &str) -> bool {
    let port = format!(":{PORT:04X}");
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], [_, local, _, "0A", ..] if local.ends_with(&port))
    })
}

/// A script that makes wrk print its counts as numbers; its usual output is rounded for people.
///
/// # Errors
/// If it cannot be written.
pub fn script(folder: &Path) -> anyhow::Result<PathBuf> {
    const SCRIPT: &str = r#"done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"requests":%d,"bytes":%d,"duration":%d,"p50":%d,"p99":%d,' ..
        '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
        summary.requests, summary.bytes, summary.duration,
        latency:percentile(50), latency:percentile(99),
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
"#;
    let file = folder.join("wrk.lua");
    std::fs::write(&file, SCRIPT).context("write the script for wrk")?;
    Ok(file)
}

/// The counts of wrk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    /// Answers that came to their end.
    requests: u64,
    /// Bytes of answers.
    bytes: u64,
    /// The duration, in microseconds.
    duration: u64,
    /// Half of the answers took at most this, in microseconds, from the request on.
    p50: u64,
    /// 99 of 100 took at most this.
    p99: u64,
    /// Connections that failed.
    connect: u64,
    /// Answers that broke off.
    read: u64,
    /// Requests that broke off.
    write: u64,
    /// Answers with an error (HTTP status 400 and above).
    status: u64,
    /// Answers that took more than two seconds.
    timeout: u64,
}

/// A run that does not count, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed(pub String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// Requests the page as often as possible. Returns thousands of requests a second and latencies,
/// under names that begin with that of the case.
///
/// # Errors
/// [`Failed`] if a request was not answered with the page, or wrk does not report it.
pub fn ask(
    spot: &Spot,
    script: &Path,
    (address, port): (std::net::Ipv4Addr, u16),
    connections: Connections,
    name: &str,
) -> anyhow::Result<Vec<Value>> {
    let bench = std::env::current_exe().context("the path of this program")?;
    let url = format!("http://{address}:{port}/index.html");
    let (count, seconds, script) =
        (CONNECTIONS.to_string(), format!("{SECONDS}s"), script.to_string_lossy());
    let cpu = super::super::pin::CLIENT_CPU.to_string();
    let pinned = ["pinned", "--cpu", &cpu, "--side", "client", "--", "wrk"];
    let mut args =
        [&pinned[..], &["-t", "1", "-c", &count, "-d", &seconds, "-s", &script]].concat();
    if connections == Connections::Each {
        args.extend(["-H", "Connection: close"]);
    }
    args.push(&url);
    let output = spot.exec(&bench.to_string_lossy(), &args)?;
    if !output.status.success() {
        return Err(Failed(output.describe()).into());
    }
    let counted = read(&output.stdout)?;
    let rate = counted.requests as f64 / counted.duration as f64 * 1e3;
    Ok(vec![
        (name.to_owned(), "thousand/s", rate),
        (format!("{name}_p50"), "us", counted.p50 as f64),
        (format!("{name}_p99"), "us", counted.p99 as f64),
    ])
}

/// Reads the script's output, if every request was answered with the page.
fn read(printed: &str) -> Result<Counted, Failed> {
    let failed = |why: &str| Failed(format!("{why}; wrk printed: {}", printed.trim_end()));
    let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with('{')).collect();
    let [line] = lines[..] else { return Err(failed("wrk did not say once what it counted")) };
    let counted: Counted =
        serde_json::from_str(line).map_err(|error| failed(&error.to_string()))?;
    let errors = [
        ("connections failed", counted.connect),
        ("answers broke off", counted.read),
        ("requests broke off", counted.write),
        ("answers had a status of 400 or more", counted.status),
        ("answers took more than two seconds", counted.timeout),
    ];
    let said: Vec<String> = errors
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    if !said.is_empty() {
        return Err(failed(&said.join(", ")));
    }
    if counted.requests == 0 || counted.duration == 0 {
        return Err(failed("nothing was answered"));
    }
    // Another page with a status of 200 or 300.
    if counted.bytes < counted.requests * PAGE as u64 {
        return Err(failed("the answers were not the page"));
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of wrk 4.1.0 with the script and with these numbers of errors.
    fn printed(errors: [u64; 5]) -> String {
        let [connect, read, write, status, timeout] = errors;
        format!(
            "Running 2s test @ http://127.0.0.1:7005/index.html\n  1 threads and 16 connections\n  \
             Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   665.61us    1.26ms   \
             8.43ms   89.13%\n    Req/Sec    50.68k     6.09k   63.24k    60.00%\n  50632 requests in \
             1.01s, 36.32MB read\nRequests/sec:  50295.07\nTransfer/sec:     36.21MB\n\
             {{\"requests\":50632,\"bytes\":63000000,\"duration\":1006699,\"p50\":225,\"p99\":6774,\
             \"connect\":{connect},\"read\":{read},\"write\":{write},\"status\":{status},\
             \"timeout\":{timeout}}}\n"
        )
    }

    #[test]
    fn what_wrk_counted_is_read_exactly() {
        let counted = read(&printed([0; 5])).expect("no errors");
        assert_eq!((counted.requests, counted.duration), (50_632, 1_006_699));
        assert_eq!((counted.p50, counted.p99), (225, 6_774));
    }

    #[test]
    fn any_error_fails_the_round_and_is_named() {
        let names = ["connections", "answers broke", "requests broke", "status", "two seconds"];
        for (at, name) in names.into_iter().enumerate() {
            let mut errors = [0; 5];
            errors[at] = 3;
            let Failed(why) = read(&printed(errors)).expect_err("an error");
            assert!(why.starts_with("3 ") && why.contains(name), "{why}");
        }
        let Failed(why) = read(&printed([1, 0, 0, 2, 0])).expect_err("errors");
        assert!(why.starts_with("1 connections failed, 2 answers had a status"), "{why}");
    }

    #[test]
    fn what_is_no_report_fails_the_round() {
        let whole = printed([0; 5]);
        for (broken, why) in [
            (whole.replace('{', "["), "did not say once"),
            (whole.repeat(2), "did not say once"),
            (whole.replace("\"timeout\":0", "\"timeouts\":0"), "timeouts"),
            (whole.replace("225", "-1"), "-1"),
            (whole.replace("\"requests\":50632", "\"requests\":0"), "nothing was answered"),
            (whole.replace("63000000", "51847167"), "not the page"),
        ] {
            let Failed(said) = read(&broken).expect_err("broken");
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_listener_is_told_from_other_sockets() {
        let row = |address: &str, state: &str| {
            format!("   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000\n")
        };
        assert!(listens(&row("00000000:1B5D", "0A")));
        assert!(!listens(&row("00000000:1B5D", "01")));
        assert!(!listens(&row("00000000:1B5C", "0A")));
    }
}
