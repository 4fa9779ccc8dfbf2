//! The reports of the nested cargo, and checks of its output file.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::Error;

/// The machine number of eBPF in an ELF header (`EM_BPF`, elf.h).
const EM_BPF: u16 = 247;

/// Cargo's messages, sorted.
#[derive(Debug, Default)]
pub(crate) struct Report {
    executables: Vec<(String, PathBuf)>,
    /// Warnings as rustc renders them.
    pub(crate) warnings: Vec<String>,
    errors: Vec<String>,
}

impl Report {
    /// Reads the lines of `--message-format=json`. Lines of another form are not cargo's messages
    /// and are skipped.
    pub(crate) fn read(stdout: &[u8]) -> Self {
        let mut report = Self::default();
        for line in stdout.split(|byte| *byte == b'\n') {
            let Ok(message) = serde_json::from_slice::<Value>(line) else { continue };
            match message["reason"].as_str() {
                Some("compiler-artifact") => report.note_artifact(&message),
                Some("compiler-message") => report.note_diagnostic(&message["message"]),
                _ => {}
            }
        }
        report
    }

    fn note_artifact(&mut self, message: &Value) {
        if let (Some(name), Some(path)) =
            (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            self.executables.push((name.to_owned(), path.into()));
        }
    }

    fn note_diagnostic(&mut self, diagnostic: &Value) {
        let Some(text) = diagnostic["rendered"].as_str() else { return };
        match diagnostic["level"].as_str() {
            Some("warning") => self.warnings.push(text.trim_end().to_owned()),
            Some(level) if level.starts_with("error") => {
                self.errors.push(text.trim_end().to_owned())
            }
            _ => {}
        }
    }

    /// The binary of a name.
    pub(crate) fn executable(&self, name: &str) -> Option<PathBuf> {
        self.executables.iter().find(|(found, _)| found == name).map(|(_, path)| path.clone())
    }

    /// The compiler's errors; if cargo failed before it ran a compiler, the end of cargo's output.
    pub(crate) fn errors_or(&self, stderr: &[u8]) -> String {
        if !self.errors.is_empty() {
            return self.errors.join("\n");
        }
        let text = String::from_utf8_lossy(stderr);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Checks that a file is an object for the kernel's loader.
///
/// # Errors
/// [`Error::File`] when it cannot be read, [`Error::NotAnObject`] when it is another kind of file.
pub fn check_object(path: &Path) -> Result<(), Error> {
    let mut header = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(20).read_to_end(&mut header))
        .map_err(|source| Error::File { path: path.into(), source })?;
    match describe(&header) {
        None => Ok(()),
        Some(found) => Err(Error::NotAnObject { path: path.into(), found }),
    }
}

/// Describes a file from its first bytes, if it is no eBPF object. ELF header, System V ABI chapter
/// 4: byte 5 is the byte order (1 little, 2 big), bytes 18 and 19 the machine.
fn describe(header: &[u8]) -> Option<String> {
    let Some(header) = header.first_chunk::<20>().filter(|header| header.starts_with(b"\x7fELF"))
    else {
        return Some("it has no ELF header".to_owned());
    };
    let machine = [header[18], header[19]];
    let machine =
        if header[5] == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    (machine != EM_BPF)
        .then(|| format!("it is an ELF file for machine {machine}, and eBPF is {EM_BPF}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(endian: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut header = b"\x7fELF\x02".to_vec();
        header.push(endian);
        header.resize(18, 0);
        header.extend(machine);
        header
    }

    #[test]
    fn an_ebpf_object_of_either_byte_order_passes() {
        assert_eq!(describe(&header(1, [247, 0])), None);
        assert_eq!(describe(&header(2, [0, 247])), None);
    }

    #[test]
    fn a_host_binary_and_a_truncated_file_are_told_apart() {
        assert!(describe(&header(1, [62, 0])).unwrap().contains("machine 62"));
        assert!(describe(b"\x7fELF\x02").unwrap().contains("no ELF header"));
        assert!(describe(b"").unwrap().contains("no ELF header"));
    }

    #[test]
    fn the_binary_is_found_among_other_messages() {
        let stdout = br#"
{"reason":"compiler-artifact","target":{"name":"aya-ebpf"},"executable":null}
some line of a tool
{"reason":"compiler-artifact","target":{"name":"overlay-datapath"},"executable":"/t/overlay-datapath"}
{"reason":"build-finished","success":true}"#;
        let report = Report::read(stdout);
        assert_eq!(report.executable("overlay-datapath"), Some("/t/overlay-datapath".into()));
        assert_eq!(report.executable("aya-ebpf"), None);
    }

    #[test]
    fn errors_come_as_rustc_renders_them_and_warnings_apart() {
        let stdout = br#"
{"reason":"compiler-message","message":{"level":"warning","rendered":"warning: unused\n"}}
{"reason":"compiler-message","message":{"level":"error","rendered":"error[E0425]: nowhere\n"}}
{"reason":"compiler-message","message":{"level":"failure-note","rendered":"For more information"}}"#;
        let report = Report::read(stdout);
        assert_eq!(report.errors_or(b"error: could not compile"), "error[E0425]: nowhere");
        assert_eq!(report.warnings, ["warning: unused"]);
    }

    #[test]
    fn without_a_compilers_error_the_end_of_cargos_own_words_is_given() {
        let words: Vec<String> = (0..30).map(|n| format!("line {n}")).collect();
        let text = Report::default().errors_or(words.join("\n").as_bytes());
        assert!(text.starts_with("line 10\n") && text.ends_with("line 29"), "{text}");
    }
}
