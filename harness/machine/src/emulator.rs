// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emulators unpacked into a folder and run from there, by the loader and with the libraries that they were packaged with.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use serde::{Deserialize, Serialize};

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What Bochs calls the folder with its plugins.
const PLUGINS: &str = "plugins";

/// A folder that holds Debian's packages of QEMU and Bochs, unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Emulators {
    root: PathBuf,
}

impl Emulators {
    /// The file in the folder that has names and versions of what was unpacked, one a line.
    pub const PACKAGES: &'static str = "packages.txt";

    /// The folder into which the packages were unpacked.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file of a package, by the path that it would be installed at, without the leading slash.
    #[must_use]
    pub fn file(&self, installed_at: &str) -> PathBuf {
        self.root.join(installed_at)
    }

    /// QEMU for x86, told where its firmware is.
    #[must_use]
    pub fn qemu(&self) -> Command {
        self.qemu_with(None)
    }

    /// The same, with a library in front of its own ones.
    #[must_use]
    pub fn qemu_with(&self, preload: Option<&Path>) -> Command {
        let mut command = self.program("usr/bin/qemu-system-x86_64", preload);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.file(firmware));
        }
        command.env("QEMU_MODULE_DIR", self.file(LIBRARIES).join("qemu"));
        command
    }

    /// Bochs with a library in front of its own ones, to be run in a folder.
    ///
    /// # Errors
    ///
    /// Those of unlink(2) and symlink(2).
    pub fn bochs(&self, preload: &Path, folder: &Path) -> io::Result<Command> {
        // By a short name: Bochs 3.0 puts the path of its plugins into a buffer that a long one overflows.
        let plugins = folder.join(PLUGINS);
        match fs::remove_file(&plugins) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => symlink(self.file(LIBRARIES).join("bochs/plugins"), &plugins)?,
        }
        let mut command = self.program("usr/bin/bochs-bin", Some(preload));
        command.current_dir(folder).env("LTDL_LIBRARY_PATH", PLUGINS);
        Ok(command)
    }

    /// An emulator's version, command line and what its configuration says, as a run folder keeps it.
    #[must_use]
    pub fn describe(&self, package: &str, command: &Command, configuration: &str) -> String {
        let version = self.version(package).unwrap_or_else(|| "of unknown version".to_owned());
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|w| quoted(&w.to_string_lossy())).collect();
        format!("{package} {version}\n\n{}\n\n{configuration}", words.join(" "))
    }

    /// The version of an unpacked package.
    #[must_use]
    pub fn version(&self, package: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(Self::PACKAGES)).ok()?;
        let of = |line: &str| Some(line.strip_prefix(package)?.strip_prefix(' ')?.trim().to_owned());
        text.lines().find_map(of)
    }

    fn program(&self, program: &str, preload: Option<&Path>) -> Command {
        let libraries = self.file(LIBRARIES);
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(format!("{0}:{0}/pulseaudio", libraries.display()))
            // What is set for the machine's own programs is not meant for these.
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("LD_PRELOAD");
        if let Some(library) = preload {
            command.arg("--preload").arg(library);
        }
        command.arg(self.file(program));
        command
    }
}

/// A word as a shell takes it.
#[must_use]
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_is_described_so_that_a_shell_takes_its_command() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(Emulators::PACKAGES),
            "qemu-system-x86-extra 9\nqemu-system-x86 1:10.0\n",
        )
        .unwrap();
        let mut command = Command::new("qemu");
        command.args(["-append", "a b", "it's"]);
        let text = Emulators::at(dir.path()).describe("qemu-system-x86", &command, "");
        assert_eq!(text, "qemu-system-x86 1:10.0\n\nqemu -append 'a b' 'it'\\''s'\n\n");
        assert_eq!(Emulators::at(dir.path()).version("bochs"), None);
    }
}
