//! `bulk-send` and `bulk-recv`: a large TCP transfer, checked by its SHA-256.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Listen, Report, answer, serve};

/// A transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BulkReport {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes sent.
    pub sent_sha256: String,
    /// SHA-256 of what arrived.
    pub received_sha256: String,
    /// How long it took.
    pub seconds: f64,
}

impl Report for BulkReport {
    fn good(&self) -> bool {
        self.sent_sha256 == self.received_sha256
    }
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Receives until SIGTERM; the answer to each transfer is its SHA-256.
pub fn receive(listen: Listen) -> anyhow::Result<ExitCode> {
    serve::accept(listen, |stream| {
        if let Err(error) = receive_one(stream) {
            println!("a transfer broke: {error}");
        }
    })
}

fn receive_one(mut stream: TcpStream) -> std::io::Result<()> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    let digest = hex(digest);
    println!("received {digest}");
    stream.write_all(format!("{digest}\n").as_bytes())
}

/// Sends `bytes` bytes that do not repeat and compares the checksums.
pub fn send(target: &str, bytes: u64) -> anyhow::Result<BulkReport> {
    let mut stream = answer::connect(target, Duration::from_secs(15))
        .map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let start = Instant::now();
    let mut digest = Sha256::new();
    let mut block: Vec<u8> = noise(1 << 18);
    let mut left = bytes;
    while left > 0 {
        // No two blocks are equal, so a block that arrives twice or in the wrong place is detected.
        block[..8].copy_from_slice(&left.to_le_bytes());
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream
            .write_all(&block[..count])
            .with_context(|| format!("{target}: {left} of {bytes} bytes were left to send"))?;
        digest.update(&block[..count]);
        left -= count as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut received = String::new();
    BufReader::new(stream)
        .read_line(&mut received)
        .with_context(|| format!("{target}: the checksum of what arrived"))?;
    Ok(BulkReport {
        bytes,
        sent_sha256: hex(digest),
        received_sha256: received.trim_end().to_owned(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Xorshift noise.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_transfer_of_odd_length_arrives_with_its_checksum() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("its address").to_string();
        let receiver = std::thread::spawn(move || receive_one(listener.accept()?.0));
        let report = send(&target, (1 << 20) + 7).expect("sent");
        assert!(report.good(), "{report:?}");
        receiver.join().expect("the receiver's thread").expect("received");
    }
}
