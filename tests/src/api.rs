//! The daemon's API on its unix socket, for data that the command line does not show: the whole
//! state, and a wait until all nodes have applied it.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::{Serialize, de::DeserializeOwned};

/// One call: `POST /v1/METHOD`.
pub fn call<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    params: &impl Serialize,
) -> anyhow::Result<T> {
    exchange(socket, method, params).with_context(|| format!("{method} on {}", socket.display()))
}

fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    params: &impl Serialize,
) -> anyhow::Result<T> {
    let body = serde_json::to_string(params)?;
    let mut stream = UnixStream::connect(socket).context("the daemon does not listen")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    let head = format!(
        "POST /v1/{method} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("status {status}: {body}");
    }
    serde_json::from_str(body).with_context(|| format!("not the JSON expected: {body}"))
}
