// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 in QEMU: booted once, saved at its point, and restored for each scenario.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use kvmi_lab_control::Lane;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::boot::{Boot, BootError, MEMORY_MIB, io_error, wait_for_point};
use crate::cache::{Cache, Key};
use crate::emulator::Emulators;
use crate::process::end_with_us;
use crate::progress::Progress;
use crate::qmp::{Commands, Qmp, QmpError};
use crate::run_folder;
use crate::scenario::{Machine, News, Request, channel, listen};

/// How long L1 may take from power-on to its point. It takes about 5 s on an idle machine.
const BOOT: Duration = Duration::from_secs(180);

/// How long writing or reading the saved state may take. It takes less than a second.
const STATE: Duration = Duration::from_secs(60);

/// The package that has the emulator.
const PACKAGE: &str = "qemu-system-x86";

/// How long QEMU may take to show registers.
const REGISTERS: Duration = Duration::from_secs(5);

/// The file names in the cache's entry of a saved L1.
const STATE_FILE: &str = "state";
const BOOT_LOG: &str = "boot.log";

/// Kernel arguments of this lane.
///
/// Nothing but interrupts and kernel threads runs on L1's CPU 0, so no guest does. TCG keeps the chipset's IGNNE# in the same word of its first
/// CPU as "nested paging is on", and whichever CPU loads an x87 state (each KVM_RUN does) rewrites that word without a lock. Where a VMRUN or
/// #VMEXIT of CPU 0 falls between that read and that write, CPU 0 goes on with nested paging off in the guest, or on in L1.
const KERNEL_ARGUMENTS: &[&str] = &["isolcpus=0"];

/// The machine's arguments; none of them names a file. Two of the three CPUs run guests: [`KERNEL_ARGUMENTS`].
fn machine_arguments() -> Vec<String> {
    let words = format!(
        "-nodefaults -no-user-config -machine pc-i440fx-10.0,accel=tcg -cpu EPYC,+svm,+npt -m {MEMORY_MIB} -smp 3 \
         -display none -no-reboot \
         -chardev socket,id=qmp,fd=0 -mon chardev=qmp,mode=control -chardev socket,id=control,fd=1 \
         -serial chardev:console -serial chardev:control"
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// An L1 saved at its point, with what is needed to restore it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    emulators: Emulators,
    boot: Boot,
    state: PathBuf,
}

/// Boots L1 and saves it at its point, unless the cache has that.
///
/// `emulators_key` stands for the emulator's version.
///
/// # Errors
///
/// [`BootError`]
pub fn prepare(
    cache: &Cache,
    emulators: &Emulators,
    emulators_key: &str,
    boot: &Boot,
    progress: &Progress,
) -> Result<Saved, BootError> {
    let key = Key::of("qemu point 1")
        .text("emulators", emulators_key)
        .text("arguments", &machine_arguments().join(" "))
        .text("kernel arguments", &boot.command_line(KERNEL_ARGUMENTS))
        .file("kernel", &boot.kernel)?
        .file("initrd", &boot.initrd)?
        .finish();
    let entry = cache.entry("points", &key, |into| {
        let task = progress.task("boot L1 in QEMU (svm-tcg)");
        // The log of a boot that failed must outlive the entry that was not made.
        let console = cache.work("logs")?.join("svm-tcg-boot.log");
        let mut qemu = Process::start(emulators, boot, &console, &console.with_extension("emulator.log"), &[])?;
        let control = qemu
            .control
            .try_clone()
            .map_err(io_error("share the control channel"))?;
        let child = &mut qemu.child;
        wait_for_point(Lane::SvmTcg, control, &console, BOOT, &task, || child.wait().ok())?;
        task.note("save its state");
        let mut qmp = qemu.qmp()?;
        qmp.command("stop", json!({}))?;
        qmp.command("migrate-set-capabilities", events())?;
        qmp.command(
            "migrate",
            json!({ "uri": format!("file:{}", into.join(STATE_FILE).display()) }),
        )?;
        wait_for_migration(&mut qmp)?;
        std::fs::copy(&console, into.join(BOOT_LOG)).map_err(io_error("keep the boot log"))?;
        task.done();
        Ok::<(), BootError>(())
    })?;
    Ok(Saved {
        emulators: emulators.clone(),
        boot: boot.clone(),
        state: entry.join(STATE_FILE),
    })
}

fn events() -> serde_json::Value {
    json!({ "capabilities": [{ "capability": "events", "state": true }] })
}

fn wait_for_migration(qmp: &mut Qmp) -> Result<(), BootError> {
    qmp.wait_for(STATE, |name, data| {
        let status = data["status"].as_str().unwrap_or_default();
        name == "MIGRATION" && (status == "completed" || status == "failed")
    })?;
    // The event has no reason for a failure, the query has.
    let state = qmp.command("query-migrate", json!({}))?;
    if state["status"] == "failed" {
        let answer = state["error-desc"].as_str().unwrap_or("no reason given").to_owned();
        return Err(QmpError::Refused {
            command: "migrate".into(),
            answer,
        }
        .into());
    }
    Ok(())
}

impl Saved {
    /// Restores L1 for one scenario; it runs on from its point.
    ///
    /// # Errors
    ///
    /// [`BootError`]
    pub fn restore(&self, request: &Request) -> Result<Restored, BootError> {
        let console = request.folder.join(Request::CONSOLE);
        let log = request.folder.join(Request::EMULATOR_LOG);
        let qemu = Process::start(&self.emulators, &self.boot, &console, &log, &["-incoming", "defer"])?;
        fs::write(request.folder.join(run_folder::EMULATOR), &qemu.described)
            .map_err(io_error("write down how qemu was started"))?;
        let mut qmp = qemu.qmp()?;
        qmp.command("migrate-set-capabilities", events())?;
        qmp.command(
            "migrate-incoming",
            json!({ "uri": format!("file:{}", self.state.display()) }),
        )?;
        wait_for_migration(&mut qmp)?;
        qmp.command("cont", json!({}))?;
        let (send, news) = channel();
        let commands = watch(qmp, send.clone());
        listen(
            qemu.control
                .try_clone()
                .map_err(io_error("share the control channel"))?,
            send,
        );
        Ok(Restored { qemu, news, commands })
    }
}

/// Tells when QEMU stops L1 without ending: an internal error, a panic that the guest reports.
fn watch(qmp: Qmp, to: Sender<News>) -> Commands {
    qmp.watch(move |name, data| match name {
        "STOP" | "GUEST_PANICKED" => to.send(News::Stopped(format!("qemu says {name} {data}"))).is_ok(),
        _ => true,
    })
}

/// A running QEMU. Its two channels are its standard input and output, so no file names them and they close with it.
#[derive(Debug)]
struct Process {
    child: Child,
    control: UnixStream,
    qmp: UnixStream,
    /// Its version and command line.
    described: String,
}

impl Process {
    fn start(emulators: &Emulators, boot: &Boot, console: &Path, log: &Path, more: &[&str]) -> Result<Self, BootError> {
        let (qmp, qemu_qmp) = UnixStream::pair().map_err(io_error("make a socket pair"))?;
        let (control, qemu_control) = UnixStream::pair().map_err(io_error("make a socket pair"))?;
        let log_file = File::create(log).map_err(io_error(format!("write {}", log.display())))?;
        let mut command: Command = emulators.qemu();
        command
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", console.display()))
            .args(machine_arguments())
            .arg("-kernel")
            .arg(&boot.kernel)
            .arg("-initrd")
            .arg(&boot.initrd)
            .arg("-append")
            .arg(boot.command_line(KERNEL_ARGUMENTS))
            .args(more)
            .stdin(OwnedFd::from(qemu_qmp))
            .stdout(OwnedFd::from(qemu_control))
            .stderr(log_file);
        let described = emulators.describe(PACKAGE, &command, "");
        let child = end_with_us(&mut command).spawn().map_err(io_error("run qemu"))?;
        Ok(Self {
            child,
            control,
            qmp,
            described,
        })
    }

    fn qmp(&self) -> Result<Qmp, BootError> {
        Ok(Qmp::start(
            self.qmp.try_clone().map_err(io_error("share qemu's control socket"))?,
        )?)
    }

    fn end(&mut self) {
        // It has ended by itself as a rule; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// An L1 that was restored.
#[derive(Debug)]
pub struct Restored {
    qemu: Process,
    news: Receiver<News>,
    commands: Commands,
}

impl Machine for Restored {
    fn control(&mut self) -> &mut dyn Write {
        &mut self.qemu.control
    }

    fn news(&mut self) -> &Receiver<News> {
        &self.news
    }

    fn registers(&mut self) -> Result<String, String> {
        self.commands.ask_monitor("info registers -a", REGISTERS)
    }

    fn end(&mut self) {
        self.qemu.end();
    }
}
