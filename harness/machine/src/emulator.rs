// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emulators unpacked into a folder and run from there, by the loader and with the libraries that they were packaged with.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A folder that holds Debian's packages of QEMU and Bochs, unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Emulators {
    root: PathBuf,
}

impl Emulators {
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
        let mut command = self.program("usr/bin/qemu-system-x86_64", None);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.file(firmware));
        }
        command.env("QEMU_MODULE_DIR", self.file(LIBRARIES).join("qemu"));
        command
    }

    /// Bochs with a library in front of its own ones.
    #[must_use]
    pub fn bochs(&self, preload: &Path) -> Command {
        let mut command = self.program("usr/bin/bochs-bin", Some(preload));
        command.env("LTDL_LIBRARY_PATH", self.file(LIBRARIES).join("bochs/plugins"));
        command
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
