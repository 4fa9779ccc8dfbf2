//! `tcp-id` and `tcp-get`: a server that speaks first, as MySQL's does.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::ExitCode,
};

use super::{Answer, Asked, Failure, FailureKind, Identity, Target, answer, serve};

/// Greets every connection with one line of JSON, then echoes lines until the client ends it.
pub fn serve(identity: &Identity) -> anyhow::Result<ExitCode> {
    let (name, host) = (identity.name.clone(), identity.host()?);
    serve::accept(identity.listen, move |stream| {
        // The client reports a broken connection.
        let _ = greet(stream, &name, &host);
    })
}

fn greet(mut stream: TcpStream, name: &str, host: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = Answer::new(name, host, stream.peer_addr()?);
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        stream.write_all(line.as_bytes())?;
    }
}

/// Reads greetings.
pub fn get(target: &Target) -> anyhow::Result<Asked> {
    Ok(Asked::collect(target.count, || {
        let stream = answer::connect(&target.target, target.timeout())?;
        greeting(&mut BufReader::new(stream), &target.target)
    }))
}

/// Reads one greeting.
pub fn greeting(reader: &mut BufReader<TcpStream>, target: &str) -> Result<Answer, Failure> {
    let mut line = String::new();
    let count = reader.read_line(&mut line).map_err(|e| Failure::talking(&target, &e))?;
    if count == 0 || !line.ends_with('\n') {
        return Err(Failure::new(FailureKind::ShortRead, format!("{target}: no greeting")));
    }
    serde_json::from_str(&line)
        .map_err(|e| Failure::new(FailureKind::BadAnswer, format!("{target}: {e}: {line:?}")))
}
