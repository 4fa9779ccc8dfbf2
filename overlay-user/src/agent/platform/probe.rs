//! One health check of one backend, made inside its own namespaces.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use nix::{libc, sys::signal::Signal, unistd::Pid};
use tokio::{
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
};

use crate::{link::netns::in_netns, model::Probe};

/// Where a command's programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A backend as its node finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its process, where one is known: commands run in the mount namespace of that.
    pub pid: Option<u32>,
    /// Its own address, under which others reach it.
    pub address: IpAddr,
}

/// Makes a check. Ends it when dropped, with every process that it started in its group.
///
/// # Errors
/// Why the backend is not healthy, in words.
pub async fn probe(backend: &Checked, probe: &Probe) -> Result<(), String> {
    match probe {
        Probe::Tcp(port) => connect(backend, *port).await.map(drop),
        Probe::Http { port, path } => get(backend, *port, path).await,
        Probe::Command(command) => run(backend, command).await,
    }
}

/// Connects inside the namespace. A server that listens only on loopback is not reachable from
/// elsewhere.
async fn connect(backend: &Checked, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(backend.address, port);
    let netns = backend.netns.clone();
    let open =
        move || {
            in_netns(&netns, || {
                if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
            })
        };
    let opened = tokio::task::spawn_blocking(open).await.map_err(|e| e.to_string())?;
    let socket = opened.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    socket.connect(address).await.map_err(|e| format!("connecting to {address}: {e}"))
}

/// Asks by GET and reads the status alone.
async fn get(backend: &Checked, port: u16, path: &str) -> Result<(), String> {
    let failed = |e: hyper::Error| format!("GET :{port}{path}: {e}");
    let stream = connect(backend, port).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = Request::get(path)
        .header(header::HOST, SocketAddr::new(backend.address, port).to_string())
        .header(header::USER_AGENT, "overlay-health")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| format!("GET :{port}{path}: {e}"))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The task that waits for the answer sees the end of the connection.
        _ = &mut connection => answer.await,
    };
    let status = answer.map_err(failed)?.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("GET :{port}{path}: status {status}"))
}

/// Runs a command by the shell of the backend's own file system.
async fn run(backend: &Checked, command: &str) -> Result<(), String> {
    let shell = |e: io::Error| format!("/bin/sh: {e}");
    let mut namespaces = vec![(open(&backend.netns)?, libc::CLONE_NEWNET)];
    if let Some(pid) = backend.pid {
        let mounts = PathBuf::from(format!("/proc/{pid}/ns/mnt"));
        namespaces.push((open(&mounts)?, libc::CLONE_NEWNS));
    }
    let mut process = Command::new("/bin/sh");
    process.args(["-c", command]).env_clear().env("PATH", PATH).current_dir("/");
    process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // The command gets a process group of its own, so that its children end with it.
    process.process_group(0);
    let enter = move || {
        for (file, kind) in &namespaces {
            // SAFETY: a system call with an open descriptor, which is all that may be done between
            // fork and exec; the child has one thread, so that it can change its mounts.
            if unsafe { libc::setns(file.as_raw_fd(), *kind) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `enter` only makes system calls, which are async-signal-safe.
    unsafe { process.pre_exec(enter) };
    let mut group = Group(process.spawn().map_err(shell)?);
    let status: ExitStatus = group.0.wait().await.map_err(shell)?;
    if status.success() { Ok(()) } else { Err(format!("the command ended with {status}")) }
}

fn open(path: &std::path::Path) -> Result<File, String> {
    File::open(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A process and those it started. Killed when dropped before it has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Known until the process has been waited for: no other can have the number before.
        if let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Those that have ended need no signal.
            let _ = nix::sys::signal::killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener, time::Duration};

    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    fn backend(netns: &TestNetns, pid: Option<u32>) -> Checked {
        Checked { netns: netns.path().to_owned(), pid, address: [127, 0, 0, 1].into() }
    }

    /// A server in the namespace that sends the same to every client.
    fn server(netns: &TestNetns, says: &'static str) -> u16 {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let port = listener.local_addr().expect("its address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
                let _ = stream.write_all(says.as_bytes());
            }
        });
        port
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connections_and_statuses_are_those_of_the_namespace() {
        if !is_root("making network namespaces") {
            return;
        }
        let (inside, elsewhere) = (TestNetns::new(), TestNetns::new());
        for netns in [&inside, &elsewhere] {
            netns.command("ip link set lo up");
        }
        let good = server(&inside, "HTTP/1.1 204 No Content\r\n\r\n");
        let bad = server(&inside, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        let (inside, elsewhere) = (backend(&inside, None), backend(&elsewhere, None));
        let http = |port| Probe::Http { port, path: "/health".to_owned() };
        assert_eq!(probe(&inside, &Probe::Tcp(good)).await, Ok(()));
        assert_eq!(probe(&inside, &http(good)).await, Ok(()));
        let error = probe(&inside, &http(bad)).await.expect_err("503");
        assert!(error.contains("503") && error.contains("/health"), "{error}");
        let error = probe(&elsewhere, &Probe::Tcp(good)).await.expect_err("another namespace");
        assert!(error.contains("refused"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn commands_run_in_the_namespace_and_end_with_their_check() {
        if !is_root("making network namespaces") {
            return;
        }
        let netns = TestNetns::new();
        netns.command("ip link set lo up");
        let backend = backend(&netns, Some(std::process::id()));
        let command = |text: &str| Probe::Command(text.to_owned());
        let only_loopback = "test \"$(ls /sys/class/net 2>/dev/null | wc -w)\" -ge 1";
        assert_eq!(probe(&backend, &command(only_loopback)).await, Ok(()));
        // The host has routes or an eth0; a new namespace has one line of header and lo's none.
        let own = "test \"$(tail -n +2 /proc/net/route | wc -l)\" = 0";
        assert_eq!(probe(&backend, &command(own)).await, Ok(()));
        let error = probe(&backend, &command("exit 3")).await.expect_err("a failure");
        assert!(error.contains("exit status: 3"), "{error}");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("pid");
        let hangs = command(&format!("sleep 600 & echo $! > {}; wait", file.display()));
        let pid = loop {
            let check = tokio::time::timeout(Duration::from_millis(500), probe(&backend, &hangs));
            assert!(check.await.is_err(), "it hangs");
            // Longer is needed where everything is slow.
            if let Ok(pid) = std::fs::read_to_string(&file).unwrap_or_default().trim().parse() {
                break Pid::from_raw(pid);
            }
        };
        for _ in 0..1000 {
            if nix::sys::signal::kill(pid, None).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{pid} outlives the check that started it");
    }
}
