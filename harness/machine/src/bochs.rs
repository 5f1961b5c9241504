// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 in Bochs: booted once for a run, then a fork of it for each scenario.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use kvmi_lab_control::{Backend, Lane, Platform};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::boot::{Boot, BootError, MEMORY_MIB, io_error, tail, wait_for_point};
use crate::emulator::Emulators;
use crate::news::{News, channel, listen};
use crate::process::{Program, end_with_us, keep_open};
use crate::progress::{Progress, Task};
use crate::run_folder;
use crate::scenario::{Machine, Request};

/// How long L1 may take from power-on to its point. It takes about 40 s on an idle machine.
const BOOT: Duration = Duration::from_secs(400);

/// What one emulated second is. About what Bochs does on a present machine, so that deadlines mean the same inside and outside.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// The package that has the emulator.
const PACKAGE: &str = "bochs";

/// How long Bochs may take to show registers.
const REGISTERS: Duration = Duration::from_secs(5);

/// Where Debian keeps the boot loader of the CD.
const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// The CPU that gives a back end what KVM uses of it.
fn cpu_model(backend: Backend) -> &'static str {
    match backend {
        // EPT, VPID, unrestricted guest, the monitor trap flag, descriptor-table exiting.
        Backend::Vmx => "corei7_skylake_x",
        // NPT, next-RIP save, decode assists, flush by ASID.
        Backend::Svm => "ryzen",
    }
}

/// A Bochs that runs and has not reached the point yet.
#[derive(Debug)]
pub struct Booting {
    lane: Lane,
    child: Child,
    control: TcpListener,
    console: PathBuf,
    /// What Bochs itself says.
    log: PathBuf,
    task: Task,
    forks: Forks,
}

/// What the CD tells the kernel, for the key of what is on it.
#[must_use]
pub fn kernel_arguments_on_cd(boot: &Boot) -> String {
    // Bochs's CPUID claims 3.5 GHz, its TSC counts instructions: without this, L1's second would last 3.5 billion of them.
    boot.command_line(
        Platform::Bochs,
        &[&format!("tsc_early_khz={}", INSTRUCTIONS_PER_SECOND / 1000)],
    )
}

/// Writes the CD from which L1 boots.
///
/// # Errors
///
/// [`BootError`]
pub fn write_cd(boot: &Boot, cd: &Path, progress: &Progress) -> Result<(), BootError> {
    let task = progress.task("write the CD for Bochs");
    let content = cd.with_extension("content");
    fs::create_dir_all(&content).map_err(io_error(format!("make {}", content.display())))?;
    let place = |from: &Path, name: &str| {
        fs::copy(from, content.join(name)).map_err(io_error(format!("copy {} to the CD", from.display())))
    };
    place(Path::new(ISOLINUX), "isolinux.bin")?;
    place(Path::new(LDLINUX), "ldlinux.c32")?;
    place(&boot.kernel, "vmlinuz")?;
    place(&boot.initrd, "initrd")?;
    let config = format!(
        "default l1\nprompt 0\nlabel l1\n kernel vmlinuz\n append initrd=initrd {}\n",
        kernel_arguments_on_cd(boot)
    );
    fs::write(content.join("isolinux.cfg"), config).map_err(io_error("write isolinux.cfg"))?;
    Program::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o"])
        .arg(cd)
        .args([
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
        ])
        .arg(&content)
        .run(&task)?;
    fs::remove_dir_all(&content).map_err(io_error("remove the CD's folder"))?;
    task.done();
    Ok(())
}

/// Starts Bochs. The calling thread must live as long as the machine is wanted: Bochs ends with it.
///
/// # Errors
///
/// [`BootError`]
pub fn start(
    lane: Lane,
    emulators: &Emulators,
    fork_server: &Path,
    cd: &Path,
    folder: &Path,
    progress: &Progress,
) -> Result<Booting, BootError> {
    let task = progress.task(format!("boot L1 in Bochs ({lane})"));
    let control = TcpListener::bind(("127.0.0.1", 0)).map_err(io_error("listen for Bochs's serial port"))?;
    let port = control
        .local_addr()
        .map_err(io_error("ask for a port's number"))?
        .port();
    let socket = format!("kvmi-lab-{}-{lane}", std::process::id());
    let listener = address(&socket)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(io_error(format!("listen on @{socket}")))?;

    let console = folder.join("boot.log");
    let log = folder.join("bochs.log");
    let config = folder.join("bochsrc");
    let go = folder.join("debugger");
    let configuration = bochsrc(lane, emulators, cd, &console, &log, port);
    fs::write(&config, &configuration).map_err(io_error("write bochsrc"))?;
    // Debian builds Bochs with its debugger, which waits for a word before it starts.
    fs::write(&go, "c\n").map_err(io_error("write the debugger's command"))?;

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
    let mut command = emulators.bochs(fork_server);
    command
        .args(["-q", "-f"])
        .arg(&config)
        .arg("-rc")
        .arg(&go)
        .env("TERM", "xterm")
        .env("KVMI_LAB_FORK_SOCKET", listener.as_raw_fd().to_string())
        .env("KVMI_LAB_FORK_CONSOLE", &console)
        .env("KVMI_LAB_FORK_LOG", &log)
        .stdin(share()?)
        .stdout(share()?)
        .stderr(File::create(folder.join("bochs.err")).map_err(io_error("write bochs.err"))?);
    keep_open(&mut command, listener.as_fd());
    let described = emulators.describe(PACKAGE, &command, &configuration);
    let child = end_with_us(&mut command).spawn().map_err(io_error("run bochs"))?;
    drop(command);
    let mut screen = File::from(terminal.master);
    // What it draws is of no interest, but must go somewhere. Ends when Bochs and its children have.
    thread::spawn(move || while screen.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
    Ok(Booting {
        lane,
        child,
        control,
        console,
        log,
        task,
        forks: Forks { socket, described },
    })
}

fn bochsrc(lane: Lane, emulators: &Emulators, cd: &Path, console: &Path, log: &Path, port: u16) -> String {
    let mut text = String::new();
    let mut line = |l: String| {
        let _ = writeln!(text, "{l}");
    };
    line(format!(
        "cpu: model={}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1",
        cpu_model(lane.backend())
    ));
    line(format!("memory: guest={MEMORY_MIB}, host={MEMORY_MIB}"));
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
        cd.display()
    ));
    line("boot: cdrom".into());
    line(format!("com1: enabled=1, mode=file, dev={}", console.display()));
    line(format!("com2: enabled=1, mode=socket-client, dev=localhost:{port}"));
    // Neither the speed nor the date of the machine underneath shows inside.
    line("clock: sync=none, time0=1735689600".into());
    line("display_library: term".into());
    line("panic: action=fatal".into());
    line("error: action=report".into());
    line("info: action=ignore".into());
    line("debug: action=ignore".into());
    line(format!("log: {}", log.display()));
    text
}

impl Booting {
    /// Waits until L1 stands at its point and forks are served.
    ///
    /// # Errors
    ///
    /// [`BootError`]; Bochs is ended then.
    pub fn ready(mut self) -> Result<ForkServer, BootError> {
        let waited = self.wait();
        let Self {
            mut child, task, forks, ..
        } = self;
        match waited {
            Ok(control) => {
                task.done();
                Ok(ForkServer {
                    child,
                    forks,
                    _control: control,
                })
            }
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    fn wait(&mut self) -> Result<TcpStream, BootError> {
        let control = self.accept()?;
        let reader = control.try_clone().map_err(io_error("share the control channel"))?;
        let child = &mut self.child;
        wait_for_point(self.lane, reader, &self.console, BOOT, &self.task, || child.wait().ok())?;
        Ok(control)
    }
}

impl Booting {
    /// Bochs connects its serial port when it starts, unless it ends before.
    fn accept(&mut self) -> Result<TcpStream, BootError> {
        loop {
            let mut ready = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            let found = poll(&mut ready, PollTimeout::from(200_u16));
            match found {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(self.control.accept().map_err(io_error("accept Bochs's serial port"))?.0),
                Err(e) => return Err(io_error("wait for Bochs's serial port")(e.into())),
            }
            if let Some(status) = self.child.try_wait().map_err(io_error("ask how Bochs is"))? {
                let log = self.log.clone();
                return Err(BootError::Ended {
                    lane: self.lane,
                    status: status.to_string(),
                    tail: tail(&log),
                    log,
                });
            }
        }
    }
}

/// A Bochs that forks at L1's point. Dropping it ends it and all its forks.
#[derive(Debug)]
pub struct ForkServer {
    child: Child,
    forks: Forks,
    /// Bochs's own serial line: it would end if that closed.
    _control: TcpStream,
}

impl ForkServer {
    /// What another process needs to have a fork.
    #[must_use]
    pub fn forks(&self) -> &Forks {
        &self.forks
    }
}

impl Drop for ForkServer {
    fn drop(&mut self) {
        // The forks die with it, by their own wish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An abstract socket's address: it vanishes with the processes that hold it.
fn address(socket: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(socket)
}

/// Where forks can be had.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forks {
    socket: String,
    /// Version, command line and configuration of the Bochs that forks.
    described: String,
}

impl Forks {
    /// Has a fork made for one scenario; it runs on from L1's point.
    ///
    /// # Errors
    ///
    /// [`BootError`]
    pub fn fork(&self, request: &Request) -> Result<Forked, BootError> {
        let control = self.connect(&request.folder)?;
        let (send, news) = channel();
        listen(
            control.try_clone().map_err(io_error("share the control channel"))?,
            send,
        );
        let folder = request.folder.clone();
        Ok(Forked { control, news, folder })
    }

    /// Has a fork made, with its logs in this folder; its control channel.
    pub(crate) fn connect(&self, folder: &Path) -> Result<UnixStream, BootError> {
        let mut control = address(&self.socket)
            .and_then(|address| UnixStream::connect_addr(&address))
            .map_err(io_error(format!("connect to Bochs on @{}", self.socket)))?;
        fs::write(folder.join(run_folder::EMULATOR), &self.described)
            .map_err(io_error("write down how bochs was started"))?;
        control
            .write_all(format!("{}\n", folder.display()).as_bytes())
            .map_err(io_error("ask Bochs for a fork"))?;
        Ok(control)
    }
}

/// A fork of L1.
#[derive(Debug)]
pub struct Forked {
    control: UnixStream,
    news: Receiver<News>,
    folder: PathBuf,
}

impl Machine for Forked {
    fn control(&mut self) -> &mut dyn Write {
        &mut self.control
    }

    fn news(&mut self) -> &Receiver<News> {
        &self.news
    }

    fn registers(&mut self) -> Result<String, String> {
        // A signal takes it into its debugger, which finds there what to show; after that it ends.
        let pid = fs::read_to_string(self.folder.join("emulator.pid")).map_err(|e| e.to_string())?;
        let pid = pid.trim().parse().map_err(|e| format!("bochs's process number: {e}"))?;
        kill(Pid::from_raw(pid), Signal::SIGINT).map_err(|e| e.to_string())?;
        let end = Instant::now() + REGISTERS;
        while !matches!(
            self.news.recv_timeout(end.saturating_duration_since(Instant::now())),
            Ok(News::Closed) | Err(_)
        ) {}
        fs::read_to_string(self.folder.join("emulator.out")).map_err(|e| e.to_string())
    }

    fn end(&mut self) {
        // It ends when its connection is half closed, and the other half closes when it has ended.
        let _ = self.control.shutdown(std::net::Shutdown::Write);
        while !matches!(self.news.recv(), Ok(News::Closed) | Err(_)) {}
    }
}
