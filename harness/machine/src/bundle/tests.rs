// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bundles that are well, and bundles that are not.

use std::fs;
use std::path::Path;

use kvmi_lab_control::Lane;
use tempfile::TempDir;

use super::manifest::{MAX_SLOWNESS, sha256};
use super::write::pack;
use super::*;
use crate::boot::Boot;
use crate::clock::{Clock, MAX_SHIFT};
use crate::outcome::{Outcome, Record};
use crate::run_folder;

fn record() -> Record {
    Record {
        scenario: "a::b".into(),
        lane: Lane::SvmTcg,
        seed: 7,
        outcome: Outcome::Fail { message: "no".into() },
        seconds: 0.5,
        measures: Vec::new(),
    }
}

/// A bundle as the lab makes it, in a folder of its own.
fn made(log: &[u8]) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name)
    };
    file(run_folder::CONSOLE, log);
    let source = Source {
        boot: Boot::new(file("k", b"kernel"), file("i", b"initrd")),
        kernel: "6.12".into(),
        clock: Clock::Counted(3),
        checkout: "abc".into(),
        emulators: vec![(Lane::SvmTcg, "qemu 10".into())],
    };
    let path = write(&source, &record(), dir.path()).unwrap();
    (dir, path)
}

fn opened(path: &Path) -> Result<(TempDir, Bundle), String> {
    let into = tempfile::tempdir().unwrap();
    let bundle = open(path, &into.path().join("bundle")).map_err(|e| e.to_string())?;
    Ok((into, bundle))
}

/// What is said of a bundle with this manifest and these members.
fn said_of(manifest: &Manifest, members: &[(&str, &[u8])]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let members: Vec<_> = members.iter().map(|(n, c)| ((*n).to_owned(), c.to_vec())).collect();
    pack(manifest, &members, &path).unwrap();
    opened(&path).map_or_else(|e| e, |_| "fine".to_owned())
}

const KERNEL: (&str, &[u8]) = ("vmlinuz", b"kernel");
const INITRD: (&str, &[u8]) = ("initrd", b"initrd");

fn manifest_of(members: &[(&str, &[u8])]) -> Manifest {
    let (_dir, path) = made(b"");
    let mut manifest = opened(&path).unwrap().1.manifest;
    let member = |(name, content): &(&str, &[u8])| Member {
        name: (*name).to_owned(),
        bytes: content.len() as u64,
        sha256: sha256(content),
    };
    manifest.members = members.iter().map(member).collect();
    manifest
}

#[test]
fn what_goes_in_comes_out() {
    let (_dir, path) = made(b"[ 1.0] hello");
    let (_into, bundle) = opened(&path).unwrap();
    assert_eq!(bundle.manifest.seen, record().outcome);
    assert_eq!(
        (bundle.manifest.seed, bundle.manifest.emulator.as_str()),
        (7, "qemu 10")
    );
    assert_eq!(bundle.manifest.clock, Clock::Counted(3));
    assert_eq!(fs::read(&bundle.boot.kernel).unwrap(), b"kernel");
    assert_eq!(
        fs::read(bundle.logs.join(run_folder::CONSOLE)).unwrap(),
        b"[ 1.0] hello"
    );
    assert!(bundle.boot.arguments.contains(&"oops=panic".to_owned()));
}

#[test]
fn a_long_log_keeps_its_beginning_and_its_end() {
    let mut log = vec![b'x'; MAX_LOG_BYTES * 2];
    log[0] = b'<';
    *log.last_mut().unwrap() = b'>';
    let (_dir, path) = made(&log);
    let (_into, bundle) = opened(&path).unwrap();
    let kept = fs::read(bundle.logs.join(run_folder::CONSOLE)).unwrap();
    assert!(kept.len() < MAX_LOG_BYTES + 100 && kept[0] == b'<' && *kept.last().unwrap() == b'>');
}

#[test]
fn a_bundle_that_would_be_too_large_is_not_made() {
    let (dir, path) = made(b"");
    fs::remove_file(&path).unwrap();
    // What does not compress.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let noise: Vec<u8> = noise.take(usize::try_from(MAX_BYTES).unwrap() + 1).collect();
    fs::write(dir.path().join("k"), noise).unwrap();
    let source = Source {
        boot: Boot::new(dir.path().join("k"), dir.path().join("i")),
        kernel: String::new(),
        clock: Clock::Host,
        checkout: String::new(),
        emulators: Vec::new(),
    };
    let error = write(&source, &record(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("more than 62914560"), "{error}");
    assert!(!path.exists() && !dir.path().join(format!(".{FILE}")).exists());
}

#[test]
fn damaged_and_truncated_ones_are_told() {
    let (dir, path) = made(b"[ 1.0] hello");
    let whole = fs::read(&path).unwrap();
    let other = dir.path().join("other");
    for end in [0, 1, 4, whole.len() / 2, whole.len() - 1] {
        fs::write(&other, &whole[..end]).unwrap();
        let said = opened(&other).unwrap_err();
        assert!(said.contains("damaged") || said.contains("no bundle"), "{end}: {said}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&other, &bytes).unwrap();
        // A flipped bit in what says nothing (a date in a header) may be borne; nothing may panic, and content is always the right one.
        if let Ok((_into, bundle)) = opened(&other) {
            assert_eq!(fs::read(&bundle.boot.kernel).unwrap(), b"kernel");
        }
    }
    fs::write(&other, "no bundle at all").unwrap();
    assert!(opened(&other).unwrap_err().contains("damaged or no bundle"));
    assert!(
        opened(Path::new("/no/such"))
            .unwrap_err()
            .contains("cannot open /no/such")
    );
    fs::File::create(&other).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(opened(&other).unwrap_err().contains("a bundle has at most"));
}

#[test]
fn a_newer_schema_is_told_whatever_else_it_says() {
    let mut manifest = manifest_of(&[KERNEL, INITRD]);
    manifest.schema = SCHEMA + 1;
    assert!(said_of(&manifest, &[KERNEL, INITRD]).contains("take a later checkout"));
}

#[test]
fn an_older_schema_is_read() {
    let mut manifest = serde_json::to_value(manifest_of(&[KERNEL, INITRD])).unwrap();
    manifest["schema"] = 1.into();
    for later in ["pace", "slowness"] {
        manifest.as_object_mut().unwrap().remove(later);
    }
    let manifest: Manifest = serde_json::from_value(manifest).unwrap();
    assert_eq!(
        (manifest.schema, manifest.clock, manifest.slowness),
        (1, Clock::Host, 1)
    );
    assert_eq!(said_of(&manifest, &[KERNEL, INITRD]), "fine");
}

#[test]
fn hostile_members_are_refused() {
    let good = manifest_of(&[KERNEL, INITRD]);
    assert_eq!(said_of(&good, &[KERNEL, INITRD]), "fine");
    for name in [
        "../x",
        "/etc/x",
        "logs/../../x",
        "logs/x",
        "logs/",
        "",
        "bundle",
        "logs//console.log",
        "forkserver.so",
    ] {
        let evil: (&str, &[u8]) = (name, b"x");
        let said = said_of(&manifest_of(&[KERNEL, INITRD, evil]), &[KERNEL, INITRD]);
        assert!(said.contains("does not belong into a bundle"), "{name}: {said}");
    }
    let extra: (&str, &[u8]) = ("logs/wire.log", b"x");
    assert!(said_of(&good, &[KERNEL, INITRD, extra]).contains("is not what the manifest says"));
    assert!(said_of(&good, &[KERNEL]).contains("\"initrd\" is missing"));
    assert!(said_of(&manifest_of(&[KERNEL]), &[KERNEL]).contains("\"initrd\" is missing"));
    assert!(said_of(&manifest_of(&[KERNEL, INITRD, KERNEL]), &[KERNEL, INITRD]).contains("is there twice"));
    assert!(said_of(&good, &[("vmlinuz", b"kernel2"), INITRD]).contains("does not have the 6 bytes"));
    assert!(said_of(&good, &[("vmlinuz", b"kern"), INITRD]).contains("does not have the 6 bytes"));
    assert!(said_of(&good, &[("vmlinuz", b"kerneX"), INITRD]).contains("does not have the content"));
    let mut oversized = good.clone();
    oversized.members[0].bytes = MAX_MEMBER_BYTES + 1;
    assert!(said_of(&oversized, &[KERNEL, INITRD]).contains("at most 268435456 are read"));
    for scenario in ["../../x", "/etc", "a.b", "", "a\nb"] {
        let mut elsewhere = good.clone();
        elsewhere.scenario = scenario.into();
        assert!(
            said_of(&elsewhere, &[KERNEL, INITRD]).contains("its scenario is"),
            "{scenario}"
        );
    }
    let mut colourful = good.clone();
    colourful.emulator = "\x1b[2Jpass".into();
    assert!(said_of(&colourful, &[KERNEL, INITRD]).contains("its emulator is"));
    let mut of_two_lines = manifest_of(&[KERNEL, INITRD]);
    of_two_lines.arguments.push("quiet\nLABEL other".into());
    assert!(said_of(&of_two_lines, &[KERNEL, INITRD]).contains("its arguments is"));
    let mut hasty = good.clone();
    hasty.clock = Clock::Counted(MAX_SHIFT + 1);
    assert!(said_of(&hasty, &[KERNEL, INITRD]).contains("its clock is"));
    for slowness in [0, MAX_SLOWNESS + 1] {
        let mut slow = manifest_of(&[KERNEL, INITRD]);
        slow.slowness = slowness;
        assert!(said_of(&slow, &[KERNEL, INITRD]).contains("its slowness is"));
    }
    let mut bomb = good;
    bomb.checkout = "x".repeat(usize::try_from(MAX_MANIFEST_BYTES).unwrap());
    assert!(said_of(&bomb, &[KERNEL, INITRD]).contains("has more than 1048576 bytes"));
}

#[test]
fn a_link_is_no_member() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let compressed = zstd::Encoder::new(fs::File::create(&path).unwrap(), 1).unwrap();
    let mut archive = tar::Builder::new(compressed);
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive
        .append_link(&mut header, "manifest.json", "/etc/passwd")
        .unwrap();
    archive.into_inner().unwrap().finish().unwrap();
    assert!(opened(&path).unwrap_err().contains("is not a plain file"));
}
