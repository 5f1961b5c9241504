// SPDX-License-Identifier: MIT OR Apache-2.0
//! Booting L1 in Bochs and saving it at its snapshot, as the cache keeps it.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cd::{ISOLINUX, LDLINUX};
use super::{Parts, Places, Process, bochsrc, kernel_arguments_on_cd, serial_port, write};
use crate::boot::{Boot, BootError, io_error, tail, wait_for_point};
use crate::cache::{Cache, Key};
use crate::progress::Progress;

/// How long L1 may take from power-on to its snapshot. It takes about 40 s on an idle machine, svm-bochs twice that.
const BOOT: Duration = Duration::from_secs(400);

/// How long saving L1 may take. It takes less than a second.
const SAVE: Duration = Duration::from_secs(60);

/// The file names in the cache's entry of a saved L1.
pub(super) const STATE: &str = "state";
const BOOT_LOG: &str = "boot.log";

/// What Bochs calls its configuration in a folder that it saved itself in.
pub(super) const CONFIGURATION: &str = "config";
/// And L1's memory there.
pub(super) const MEMORY: &str = "memory.ram";
/// What it notes about its own log there.
const LOG_OPTIONS: &str = "logopts";

/// Boots L1 and saves it at its snapshot, unless the cache has that; the folder that it is saved in.
///
/// `emulators_key` stands for the emulator's version. The calling thread is the one that Bochs ends with.
///
/// # Errors
///
/// [`BootError`]
pub fn prepare(
    parts: &Parts,
    cache: &Cache,
    emulators_key: &str,
    boot: &Boot,
    progress: &Progress,
) -> Result<PathBuf, BootError> {
    let nowhere = Places {
        cd: Path::new("cd"),
        console: Path::new("console"),
        log: Path::new("log"),
        port: 0,
    };
    let key = Key::of("bochs snapshot 1")
        .text("emulators", emulators_key)
        .text(
            "machine",
            &bochsrc(
                parts.lane,
                parts.memory_mib,
                &crate::emulator::Emulators::at(""),
                &nowhere,
            ),
        )
        .text("kernel arguments", &kernel_arguments_on_cd(boot))
        .file("kernel", &boot.kernel)?
        .file("initrd", &boot.initrd)?
        .file("boot loader", Path::new(ISOLINUX))?
        .file("boot loader's second part", Path::new(LDLINUX))?
        .file("library", parts.library)?
        .finish();
    let entry = cache.entry("snapshots", &key, |into| {
        // The logs of a boot that failed must outlive the entry that was not made.
        let logs = cache.work("logs")?.join(parts.lane.name());
        fs::create_dir_all(&logs).map_err(io_error(format!("make {}", logs.display())))?;
        let state = into.join(STATE);
        fs::create_dir(&state).map_err(io_error(format!("make {}", state.display())))?;
        save(parts, &logs, &state, BOOT * boot.slowness, progress)?;
        require_whole(&state)?;
        fs::copy(logs.join(BOOT_LOG), into.join(BOOT_LOG)).map_err(io_error("keep the boot log"))?;
        Ok::<(), BootError>(())
    })?;
    Ok(entry.join(STATE))
}

fn save(parts: &Parts, logs: &Path, state: &Path, at_most: Duration, progress: &Progress) -> Result<(), BootError> {
    let task = progress.task(format!("boot L1 in Bochs ({})", parts.lane));
    let (serial, port) = serial_port()?;
    let console = logs.join(BOOT_LOG);
    let log = logs.join("bochs.log");
    let configuration = logs.join("bochsrc");
    let places = Places {
        cd: parts.cd,
        console: &console,
        log: &log,
        port,
    };
    write(
        &configuration,
        &bochsrc(parts.lane, parts.memory_mib, parts.emulators, &places),
    )?;
    let command = parts.emulators.bochs(parts.library, logs);
    let mut command = command.map_err(io_error("name the plugins of Bochs"))?;
    command
        .args(["-q", "-f"])
        .arg(&configuration)
        .env("KVMI_LAB_SAVE_IN", state);
    let mut bochs = Process::start(parts.lane, command, logs, log, serial)?;
    let control = bochs.accept()?;
    let reader = control.try_clone().map_err(io_error("share the control channel"))?;
    let child = &mut bochs.child;
    let snapshot_of = wait_for_point(parts.lane, reader, &console, at_most, &task, || child.wait().ok());
    snapshot_of.map_err(|e| bochs.explain(e))?;
    task.note("save its state");
    if !closes(&control).map_err(io_error("wait for Bochs to save L1"))? {
        return Err(BootError::Late {
            lane: parts.lane,
            after: SAVE,
            tail: tail(&bochs.log),
            log: bochs.log.clone(),
        });
    }
    let status = bochs.child.wait().map_err(io_error("wait for Bochs"))?;
    if !status.success() {
        return Err(bochs.ended(&status.to_string()));
    }
    task.done();
    Ok(())
}

/// Whether the channel closes in time: Bochs ends when it has saved L1.
fn closes(mut control: &TcpStream) -> io::Result<bool> {
    control.set_read_timeout(Some(SAVE))?;
    match io::copy(&mut control, &mut io::sink()) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Fails unless every part of a saved state is there to its end: Bochs does not look whether the disk took what it wrote.
fn require_whole(state: &Path) -> Result<(), BootError> {
    let cut = |name: &str| io_error(format!("save L1: Bochs left {name} unfinished, is the disk full?"));
    let mut lists = 0;
    for entry in fs::read_dir(state).map_err(io_error("look at what Bochs saved"))? {
        let entry = entry.map_err(io_error("look at what Bochs saved"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Each device has a list of what it holds, and some a file of plain bytes whose name has a dot.
        if name.contains('.') || name == CONFIGURATION || name == LOG_OPTIONS {
            continue;
        }
        let text = fs::read(entry.path()).map_err(io_error(format!("read what Bochs saved of {name}")))?;
        if !text.ends_with(b"}\n") {
            return Err(cut(&name)(io::ErrorKind::UnexpectedEof.into()));
        }
        lists += 1;
    }
    if lists > 0 && state.join(MEMORY).is_file() {
        return Ok(());
    }
    Err(cut("its memory")(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let reason = || require_whole(dir.path()).unwrap_err().to_string();
        assert!(reason().contains("its memory"));
        write(CONFIGURATION, "cpu: count=1");
        write(LOG_OPTIONS, "");
        write(MEMORY, "\0");
        write("cpu0", "cpu0 = {\n  RAX = 0x0\n}\n");
        require_whole(dir.path()).unwrap();
        write("pic", "pic = {\n  master = {\n");
        assert!(reason().contains("left pic unfinished"), "{}", reason());
    }
}
