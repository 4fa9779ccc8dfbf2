//! The archive format of an initial file system: cpio's `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path},
};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Writes an archive; folders come by themselves.
pub struct Archive<W> {
    out: W,
    entries: u32,
    known: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0, known: BTreeSet::new() }
    }

    /// Whether the archive has a file at this path.
    pub fn has(&self, path: &Path) -> bool {
        self.known.contains(&name(path))
    }

    /// Adds an empty folder and those above it.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let folders: Vec<&Path> = path.ancestors().collect();
        for folder in folders.into_iter().rev() {
            let name = name(folder);
            if !name.is_empty() && self.known.insert(name.clone()) {
                self.entry(&name, DIRECTORY | 0o755, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file that all users may run, and the folders above it. An existing path stays
    /// unchanged.
    pub fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            self.directory(folder)?;
        }
        let name = name(path);
        if self.known.insert(name.clone()) {
            self.entry(&name, FILE | 0o755, content)?;
        }
        Ok(())
    }

    /// Writes the end mark.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{name} is too large for an archive"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.entries += 1;
        let links = 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), device node (2), name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(header.len() + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Header with name, and content, end at a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

/// Names in the archive are relative to its root.
fn name(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy()),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_files_and_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/bin/sh"), b"#!").unwrap();
        archive.file(Path::new("/bin/ip"), b"12345").unwrap();
        archive.file(Path::new("bin/ip"), b"other").unwrap();
        assert!(archive.has(Path::new("/bin/sh")) && !archive.has(Path::new("/bin/tc")));
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let names: Vec<&str> = text
            .split("070701")
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["bin", "bin/sh", "bin/ip", "TRAILER!!!"]);
        assert!(text.contains("12345\0\0\0"), "padded");
    }

    #[test]
    fn a_header_has_the_fields_where_the_kernel_reads_them() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("init"), b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[..22], b"07070100000001000081ed");
        assert_eq!(&bytes[54..62], b"00000005", "the size of the content");
        assert_eq!(&bytes[94..102], b"00000005", "the size of the name with its end");
        assert_eq!(&bytes[110..116], b"init\0\0");
        assert_eq!(&bytes[116..121], b"hello");
    }
}
