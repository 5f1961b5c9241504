// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading a bundle that somebody sent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::manifest::{MAX_SLOWNESS, Manifest, Member, SCHEMA, sha256};
use super::{MAX_BYTES, MAX_MANIFEST_BYTES, MAX_MEMBER_BYTES, name};
use crate::boot::{Boot, Hardware};
use crate::run_folder;

/// Why a file is no bundle to go by.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read, or what it holds not be written.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// It is larger than bundles are.
    #[error("it has {bytes} bytes, a bundle has at most {MAX_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// It is no zstd-compressed tar, or ends too early.
    #[error("it is damaged or no bundle: {0}")]
    Damaged(io::Error),
    /// The first member is not the manifest.
    #[error("it is no bundle: it begins with {0:?}, not with manifest.json")]
    NoManifest(String),
    /// The manifest makes no sense.
    #[error("its manifest makes no sense: {0}")]
    Manifest(serde_json::Error),
    /// It comes from a later lab.
    #[error("it has schema {found}, this checkout reads up to {SCHEMA}: take a later checkout")]
    Newer {
        /// Its schema.
        found: u32,
    },
    /// Something in the manifest would be taken for more than a text.
    #[error("it is hostile or damaged: its {what} is {text:?}")]
    Text {
        /// Which.
        what: &'static str,
        /// What it says.
        text: String,
    },
    /// A member is not what may be in a bundle.
    #[error("it is hostile or damaged: member {name:?} {what}")]
    Member {
        /// The member's name.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// A bundle that was unpacked.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// What it says of itself.
    pub manifest: Manifest,
    /// What L1 boots.
    pub boot: Boot,
    /// The folder with the logs of the run that it came from.
    pub logs: PathBuf,
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

/// Checks a bundle and unpacks it into a folder, which is made. Nothing is written outside of it, whatever the bundle says.
///
/// # Errors
///
/// [`BundleError`]
pub fn open(path: &Path, into: &Path) -> Result<Bundle, BundleError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |error| BundleError::Io { action, path, error }
    };
    let file = File::open(path).map_err(io_error("open", path))?;
    let bytes = file.metadata().map_err(io_error("look at", path))?.len();
    if bytes > MAX_BYTES {
        return Err(BundleError::TooLarge { bytes });
    }
    fs::create_dir_all(into.join(name::LOGS)).map_err(io_error("make", into))?;
    let stream = zstd::Decoder::new(BufReader::new(file)).map_err(BundleError::Damaged)?;
    let mut archive = tar::Archive::new(stream);
    // Raw: names that are long, linked or otherwise extended are no names of members.
    let mut entries = archive.entries().map_err(BundleError::Damaged)?.raw(true);

    let first = entries.next().ok_or_else(|| BundleError::NoManifest(String::new()))?;
    let manifest = read_manifest(first.map_err(BundleError::Damaged)?)?;
    let mut awaited = manifest.members.iter();
    for entry in entries {
        let mut entry = entry.map_err(BundleError::Damaged)?;
        let name = entry_name(&entry)?;
        let member = awaited.next().filter(|m| m.name == name);
        let member = member.ok_or_else(|| wrong(&name, "is not what the manifest says comes here"))?;
        let content = read_member(&mut entry, member)?;
        let to = into.join(&member.name);
        fs::write(&to, content).map_err(io_error("write", &to))?;
    }
    if let Some(missing) = awaited.next() {
        return Err(wrong(&missing.name, "is missing"));
    }
    Ok(Bundle {
        boot: Boot {
            kernel: into.join(name::KERNEL),
            initrd: into.join(name::INITRD),
            arguments: manifest.arguments.clone(),
            slowness: manifest.slowness,
            hardware: Hardware::default(),
        },
        logs: into.join(name::LOGS),
        manifest,
    })
}

fn wrong(name: &str, what: impl Into<String>) -> BundleError {
    BundleError::Member {
        name: name.to_owned(),
        what: what.into(),
    }
}

fn text(what: &'static str, text: &str) -> BundleError {
    let text = text.to_owned();
    BundleError::Text { what, text }
}

/// What moves a terminal's cursor or changes its colours, and has no place in a line of text.
fn is_unseemly(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

fn has(manifest: &Manifest, name: &str) -> bool {
    manifest.members.iter().any(|m| m.name == name)
}

/// The name of a plain file in the archive.
fn entry_name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<String, BundleError> {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    if entry.header().entry_type() == tar::EntryType::Regular {
        Ok(name)
    } else {
        Err(wrong(&name, "is not a plain file"))
    }
}

fn read_manifest<R: Read>(mut entry: tar::Entry<'_, R>) -> Result<Manifest, BundleError> {
    let found = entry_name(&entry)?;
    if found != name::MANIFEST {
        return Err(BundleError::NoManifest(found));
    }
    let mut text = Vec::new();
    let read = (&mut entry).take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut text);
    if read.map_err(BundleError::Damaged)? as u64 > MAX_MANIFEST_BYTES {
        return Err(wrong(&found, format!("has more than {MAX_MANIFEST_BYTES} bytes")));
    }
    // A later schema may look otherwise in all but this.
    let SchemaOnly { schema } = serde_json::from_slice(&text).map_err(BundleError::Manifest)?;
    if schema > SCHEMA {
        return Err(BundleError::Newer { found: schema });
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(BundleError::Manifest)?;
    check(&manifest)?;
    Ok(manifest)
}

/// Only known names may be there, each once: a name is never taken for a path before.
fn check(manifest: &Manifest) -> Result<(), BundleError> {
    // It names a folder of logs.
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if manifest.scenario.is_empty() || !manifest.scenario.chars().all(is_of_name) {
        return Err(text("scenario", &manifest.scenario));
    }
    // The emulator is told it.
    if !manifest.clock.is_possible() {
        return Err(text("clock", &manifest.clock.to_string()));
    }
    if !(1..=MAX_SLOWNESS).contains(&manifest.slowness) {
        return Err(text("slowness", &manifest.slowness.to_string()));
    }
    // They are shown on terminals.
    let shown = [("emulator", &manifest.emulator), ("checkout", &manifest.checkout)];
    if let Some((what, said)) = shown.into_iter().find(|(_, said)| said.contains(is_unseemly)) {
        return Err(text(what, said));
    }
    // They become a line of a boot loader's configuration, and of a command.
    if let Some(argument) = manifest.arguments.iter().find(|said| said.contains(char::is_control)) {
        return Err(text("arguments", argument));
    }
    let mut seen = BTreeSet::new();
    for Member { name, bytes, .. } in &manifest.members {
        let is_log = name
            .strip_prefix(name::LOGS)
            .is_some_and(|log| run_folder::FILES.contains(&log));
        if !is_log && ![name::KERNEL, name::INITRD].contains(&name.as_str()) {
            return Err(wrong(name, "does not belong into a bundle"));
        }
        if *bytes > MAX_MEMBER_BYTES {
            return Err(wrong(
                name,
                format!("has {bytes} bytes, at most {MAX_MEMBER_BYTES} are read"),
            ));
        }
        if !seen.insert(name) {
            return Err(wrong(name, "is there twice"));
        }
    }
    match [name::KERNEL, name::INITRD].iter().find(|name| !has(manifest, name)) {
        Some(missing) => Err(wrong(missing, "is missing")),
        None => Ok(()),
    }
}

fn read_member<R: Read>(entry: &mut tar::Entry<'_, R>, member: &Member) -> Result<Vec<u8>, BundleError> {
    let mut content = Vec::new();
    entry
        .take(member.bytes + 1)
        .read_to_end(&mut content)
        .map_err(BundleError::Damaged)?;
    if content.len() as u64 != member.bytes {
        return Err(wrong(
            &member.name,
            format!("does not have the {} bytes that the manifest says", member.bytes),
        ));
    }
    if sha256(&content) != member.sha256 {
        return Err(wrong(&member.name, "does not have the content that the manifest says"));
    }
    Ok(content)
}
