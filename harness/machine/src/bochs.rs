// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 in Bochs: booted once and saved at its snapshot, restored once for a run, then a fork of it for each scenario.

mod cd;
mod forks;
mod snapshot;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use kvmi_lab_control::{Backend, Lane};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

pub use cd::{kernel_arguments_on_cd, write_cd};
pub use forks::{ForkServer, Forked, Forks, start};
pub use snapshot::prepare;

use crate::boot::{BootError, explain, io_error, tail};
use crate::emulator::Emulators;
use crate::process::Owned;

/// What one emulated second is. About what Bochs does on a present machine, so that deadlines mean the same inside and outside.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// The package that has the emulator.
const PACKAGE: &str = "bochs";

/// The variable that tells it that the CPU has SVM.
const SVM: &str = "KVMI_LAB_SVM";

/// The CPU that gives a back end what KVM uses of it.
fn cpu_model(backend: Backend) -> &'static str {
    match backend {
        // EPT, VPID, unrestricted guest, the monitor trap flag, descriptor-table exiting.
        Backend::Vmx => "corei7_skylake_x",
        // NPT, next-RIP save, decode assists, flush by ASID.
        Backend::Svm => "ryzen",
    }
}

/// What a Bochs is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The lane that it is for.
    pub lane: Lane,
    /// Where it is unpacked.
    pub emulators: &'a Emulators,
    /// The library that is preloaded into it.
    pub library: &'a Path,
    /// The CD from which L1 boots.
    pub cd: &'a Path,
    /// L1's memory.
    pub memory_mib: u32,
}

/// What differs between two Bochs of the same lane: where they find and leave things.
#[derive(Debug)]
struct Places<'a> {
    cd: &'a Path,
    /// L1's console, which may be relative to the folder that Bochs works in.
    console: &'a Path,
    /// What Bochs itself says.
    log: &'a Path,
    /// Where the second serial port is listened for.
    port: u16,
}

/// The machine, with what differs left to `places`.
fn bochsrc(lane: Lane, memory_mib: u32, emulators: &Emulators, places: &Places) -> String {
    let mut text = String::new();
    let mut line = |l: String| {
        let _ = writeln!(text, "{l}");
    };
    line(format!(
        "cpu: model={}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1",
        cpu_model(lane.backend())
    ));
    line(format!("memory: guest={memory_mib}, host={memory_mib}"));
    line(format!(
        "romimage: file={}",
        emulators.file("usr/share/bochs/BIOS-bochs-latest").display()
    ));
    line(format!(
        "vgaromimage: file={}",
        emulators.file("usr/share/vgabios/vgabios.bin").display()
    ));
    line("ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14".into());
    line(format!(
        "ata0-master: type=cdrom, path={}, status=inserted",
        places.cd.display()
    ));
    line("boot: cdrom".into());
    // In this order in every Bochs: one that is restored gives each timer to the device that made it, by their order alone.
    line(
        "plugin_ctrl: biosdev=1, extfpuirq=1, serial=1, unmapped=1, iodebug=0, parallel=0, gameport=0, speaker=0"
            .into(),
    );
    // By the time inside, like all else, and seldom: nobody looks.
    line("vga: extension=vbe, update_freq=1, realtime=0".into());
    line(format!("com1: enabled=1, mode=file, dev={}", places.console.display()));
    line(format!(
        "com2: enabled=1, mode=socket-client, dev=localhost:{}",
        places.port
    ));
    // Neither the speed nor the date of the machine underneath shows inside.
    line("clock: sync=none, time0=1735689600".into());
    line("display_library: term".into());
    line("panic: action=fatal".into());
    line("error: action=report".into());
    line("info: action=ignore".into());
    line("debug: action=ignore".into());
    line(format!("log: {}", places.log.display()));
    text
}

/// A Bochs that runs.
#[derive(Debug)]
struct Process {
    lane: Lane,
    /// The forks die with it, by their own wish.
    child: Owned,
    /// Where it connects its second serial port to.
    serial: TcpListener,
    /// What it says of itself.
    log: PathBuf,
    /// What it says before it has a log, and what the library says that is preloaded into it.
    errors: PathBuf,
}

impl Process {
    /// Starts Bochs in a folder. The calling thread must live as long as the machine is wanted: Bochs ends with it.
    fn start(
        lane: Lane,
        mut command: Command,
        folder: &Path,
        log: PathBuf,
        serial: TcpListener,
    ) -> Result<Self, BootError> {
        // It insists on a terminal and on drawing there.
        let size = Winsize {
            ws_row: 50,
            ws_col: 132,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(Some(&size), None).map_err(|e| io_error("open a terminal for Bochs")(e.into()))?;
        // A child that holds its own terminal's other end would never see it close.
        for end in [terminal.master.as_fd(), terminal.slave.as_fd()] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .map_err(|e| io_error("keep a terminal from Bochs")(e.into()))?;
        }
        let share = || terminal.slave.try_clone().map_err(io_error("share a terminal"));
        let errors = folder.join("bochs.err");
        if lane.backend() == Backend::Svm {
            command.env(SVM, "");
        }
        command
            .env("TERM", "xterm")
            .stdin(share()?)
            .stdout(share()?)
            .stderr(File::create(&errors).map_err(io_error(format!("write {}", errors.display())))?);
        let child = Owned::start(&mut command).map_err(io_error("run bochs"))?;
        drop(command);
        let mut screen = File::from(terminal.master);
        // What it draws is of no interest, but must go somewhere. Ends when Bochs and its children have.
        thread::spawn(move || while screen.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
        Ok(Self {
            lane,
            child,
            serial,
            log,
            errors,
        })
    }

    /// Bochs connects its serial port when it starts, unless it ends before.
    fn accept(&mut self) -> Result<TcpStream, BootError> {
        loop {
            let mut ready = [PollFd::new(self.serial.as_fd(), PollFlags::POLLIN)];
            let found = poll(&mut ready, PollTimeout::from(200_u16));
            match found {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(self.serial.accept().map_err(io_error("accept Bochs's serial port"))?.0),
                Err(e) => return Err(io_error("wait for Bochs's serial port")(e.into())),
            }
            if let Some(status) = self.child.try_wait().map_err(io_error("ask how Bochs is"))? {
                return Err(self.ended(&status.to_string()));
            }
        }
    }

    /// That it ended, with what it says of itself.
    fn ended(&self, status: &str) -> BootError {
        self.explain(BootError::Ended {
            lane: self.lane,
            status: status.to_owned(),
            tail: tail(&self.log),
            log: self.log.clone(),
        })
    }

    /// The same error, or what made Bochs end.
    fn explain(&self, error: BootError) -> BootError {
        explain(self.lane, error, &self.errors)
    }
}

/// Listens for a Bochs's second serial port; the number of the port.
fn serial_port() -> Result<(TcpListener, u16), BootError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io_error("listen for Bochs's serial port"))?;
    let address = listener.local_addr().map_err(io_error("ask for a port's number"))?;
    Ok((listener, address.port()))
}

fn write(path: &Path, text: &str) -> Result<(), BootError> {
    fs::write(path, text).map_err(io_error(format!("write {}", path.display())))
}
