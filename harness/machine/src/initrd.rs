// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1's initial file system: a newc archive that is the same, to the byte, whenever its content is.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use cpio::{NewcBuilder, NewcReader};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// How hard the archive is compressed, and over what distance, as a power of 2: the kernel takes no greater one.
const LEVEL: i32 = 3;
const WINDOW_LOG: u32 = 27;

#[derive(Debug)]
enum Node {
    Directory,
    File { mode: u32, content: Vec<u8> },
    CharacterDevice { major: u32, minor: u32 },
}

/// What is to be in the archive. Folders that lead to an entry come by themselves.
#[derive(Debug, Default)]
pub struct Initrd {
    nodes: BTreeMap<String, Node>,
}

impl Initrd {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty folder. Paths have no leading slash.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        self.add(path, Node::Directory)
    }

    /// Adds a file with its permissions.
    pub fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        self.add(path, Node::File { mode, content })
    }

    /// Adds a character device, e.g. the console: 5, 1.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        self.add(path, Node::CharacterDevice { major, minor })
    }

    fn add(&mut self, path: &str, node: Node) -> &mut Self {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
        self.nodes.insert(path.to_owned(), node);
        self
    }

    /// Writes the archive as the kernel takes it too: compressed, which pays where files are much alike.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_compressed<W: Write>(&self, to: W) -> io::Result<W> {
        let mut encoder = zstd::Encoder::new(to, LEVEL)?;
        // Programs that are linked statically have a C library each.
        encoder.long_distance_matching(true)?;
        encoder.window_log(WINDOW_LOG)?;
        self.write(encoder)?.finish()
    }

    /// Writes the archive.
    ///
    /// # Errors
    ///
    /// What `to` fails with; a file of 4 GiB or more.
    pub fn write<W: Write>(&self, mut to: W) -> io::Result<W> {
        for (number, (path, node)) in (1..).zip(&self.nodes) {
            let entry = NewcBuilder::new(path).ino(number).mtime(0);
            let (entry, content) = match node {
                Node::Directory => (entry.nlink(2).mode(DIRECTORY | 0o755), &[][..]),
                Node::File { mode, content } => (entry.nlink(1).mode(FILE | mode), &content[..]),
                Node::CharacterDevice { major, minor } => (
                    entry
                        .nlink(1)
                        .mode(CHARACTER_DEVICE | 0o600)
                        .rdev_major(*major)
                        .rdev_minor(*minor),
                    &[][..],
                ),
            };
            let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{path}: 4 GiB or more")))?;
            let mut writer = entry.write(to, size);
            writer.write_all(content)?;
            to = writer.finish()?;
        }
        cpio::newc::trailer(to)
    }
}

/// What a file of an archive holds, by its path without the leading slash; nothing where it is not there.
///
/// # Errors
///
/// An archive that makes no sense.
pub fn content(archive: &[u8], path: &str) -> io::Result<Option<Vec<u8>>> {
    let mut rest = archive;
    loop {
        let mut reader = NewcReader::new(rest)?;
        if reader.entry().is_trailer() {
            return Ok(None);
        }
        if reader.entry().name() == path {
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            return Ok(Some(content));
        }
        rest = reader.finish()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_does_not_matter_and_folders_come_first() {
        let mut a = Initrd::new();
        a.file("init", 0o755, b"#!".to_vec())
            .character_device("dev/console", 5, 1)
            .directory("proc");
        let mut b = Initrd::new();
        b.directory("proc")
            .character_device("dev/console", 5, 1)
            .file("init", 0o755, b"#!".to_vec());
        let bytes = a.write(Vec::new()).unwrap();
        assert_eq!(bytes, b.write(Vec::new()).unwrap());

        assert_eq!(content(&bytes, "init").unwrap(), Some(b"#!".to_vec()));
        assert_eq!(content(&bytes, "init2").unwrap(), None);
        assert!(content(&bytes[..bytes.len() / 2], "init2").is_err());

        let mut names = Vec::new();
        let mut rest = &bytes[..];
        loop {
            let reader = NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((
                reader.entry().name().to_owned(),
                reader.entry().mode(),
                reader.entry().mtime(),
            ));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
            ("init", 0o100_755),
            ("proc", 0o040_755),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode, 0)));
    }
}
