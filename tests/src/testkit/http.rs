//! `http` and `http-get`: HTTP/1.1 with keep-alive, the part of RFC 9112 that a load test needs.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use super::{Answer, Asked, Failure, Identity, Target, answer, serve};

/// The server rejects a larger head.
const HEAD_LIMIT: u64 = 16 * 1024;

/// Idle connections are closed this long after SIGTERM: long enough for every active client to send
/// one more request and get `Connection: close` with the answer.
const IDLE_AFTER_STOP: Duration = Duration::from_secs(3);

/// Parameters of `http`.
#[derive(Clone, Debug, Args)]
pub struct HttpArgs {
    #[command(flatten)]
    identity: Identity,
    /// While this file exists, `/health` is answered with status 503.
    #[arg(long)]
    sick: Option<PathBuf>,
}

/// Answers GETs until SIGTERM. From then on every answer says `Connection: close`.
pub fn serve(args: &HttpArgs) -> anyhow::Result<ExitCode> {
    let HttpArgs { identity, sick } = args;
    let (name, host, sick) = (identity.name.clone(), identity.host()?, sick.clone());
    serve::accept(identity.listen, move |stream| {
        // The client reports a broken connection.
        let _ = converse(stream, &name, &host, sick.as_deref());
    })
}

fn converse(mut stream: TcpStream, name: &str, host: &str, sick: Option<&Path>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = Answer::new(name, host, stream.peer_addr()?);
    let body = serde_json::to_string(&answer)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(Asks { close, path }) = read_request(&stream, &mut reader)? {
        let close = close || serve::stopping();
        let is_sick = path == "/health" && sick.is_some_and(Path::exists);
        let status = if is_sick { "503 Service Unavailable" } else { "200 OK" };
        let connection = if close { "close" } else { "keep-alive" };
        let length = body.len();
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: {connection}\r\n\r\n{body}"
        );
        stream.write_all(response.as_bytes())?;
        if close {
            break;
        }
    }
    // Let the client end the connection: closing with unread input would reset it.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    io::copy(&mut reader, &mut io::sink())?;
    Ok(())
}

/// The content of a request.
struct Asks {
    /// The client wants no more.
    close: bool,
    path: String,
}

/// Reads one request head; `None` at the end of the connection.
fn read_request(stream: &TcpStream, reader: &mut BufReader<TcpStream>) -> io::Result<Option<Asks>> {
    if reader.buffer().is_empty() && !wait_for_request(stream)? {
        return Ok(None);
    }
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let head = read_head(reader)?;
    let Some(first) = head.first() else { return Ok(None) };
    if !first.starts_with("GET ") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a GET: {first:?}")));
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let close = header(&head, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    Ok(Some(Asks { close, path }))
}

/// Waits for input; false once the server stops and the client stays idle.
fn wait_for_request(stream: &TcpStream) -> io::Result<bool> {
    let mut stopped: Option<Instant> = None;
    loop {
        match serve::wait_readable(stream, Duration::from_millis(100)) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        if serve::stopping() && stopped.get_or_insert_with(Instant::now).elapsed() > IDLE_AFTER_STOP
        {
            return Ok(false);
        }
    }
}

/// The lines of a head; none at the end of the connection.
fn read_head(reader: &mut BufReader<TcpStream>) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut limited = reader.take(HEAD_LIMIT);
    loop {
        let mut line = String::new();
        let count = limited.read_line(&mut line)?;
        if count == 0 && lines.is_empty() {
            return Ok(lines);
        }
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_owned());
    }
}

fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Asks, with a new connection each time.
pub fn get(target: &Target) -> anyhow::Result<Asked> {
    Ok(Asked::collect(target.count, || {
        let mut connection = Connection::open(&target.target, target.timeout())?;
        connection.request(true).map(|(answer, _)| answer)
    }))
}

/// A client's connection.
pub struct Connection {
    target: String,
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(target: &str, timeout: Duration) -> Result<Self, Failure> {
        let stream = answer::connect(target, timeout)?;
        Ok(Self { target: target.to_owned(), reader: BufReader::new(stream) })
    }

    /// One request and its answer, and whether the server keeps the connection open.
    pub fn request(&mut self, close: bool) -> Result<(Answer, bool), Failure> {
        self.exchange(close).map_err(|e| Failure::talking(&self.target, &e))
    }

    fn exchange(&mut self, close: bool) -> io::Result<(Answer, bool)> {
        let connection = if close { "close" } else { "keep-alive" };
        let request =
            format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n", self.target);
        self.reader.get_mut().write_all(request.as_bytes())?;
        let head = read_head(&mut self.reader)?;
        let Some(status) = head.first() else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        if !status.starts_with("HTTP/1.1 200 ") {
            return Err(bad(format!("status {status:?}")));
        }
        let length: usize = header(&head, "content-length")
            .and_then(|v| v.parse().ok())
            .ok_or_else(|| bad("no Content-Length".to_owned()))?;
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        let answer = serde_json::from_slice(&body).map_err(|e| bad(e.to_string()))?;
        let open = !header(&head, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        Ok((answer, open))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_kept_connection_answers_twice_and_then_ends_as_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("its address").to_string();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            converse(stream, "hello", "h1", None)
        });
        let mut client = Connection::open(&target, Duration::from_secs(2)).expect("connected");
        let (answer, open) = client.request(false).expect("the first answer");
        assert_eq!((answer.name.as_str(), answer.host.as_str(), open), ("hello", "h1", true));
        let (_, open) = client.request(true).expect("the second answer");
        assert!(!open);
        drop(client);
        server.join().expect("the server's thread").expect("an orderly end");
    }

    #[test]
    fn an_answer_that_ends_early_is_a_short_read() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("its address").to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).expect("a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{").expect("sent");
        });
        let mut client = Connection::open(&target, Duration::from_secs(2)).expect("connected");
        let failure = client.request(true).expect_err("an unfinished answer");
        assert_eq!(failure.kind, super::super::FailureKind::ShortRead);
        server.join().expect("the server's thread");
    }
}
