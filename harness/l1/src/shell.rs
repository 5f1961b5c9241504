// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 with a person at its control channel: a guest runs, and the channel becomes the terminal of a shell.

mod introspect;
mod vm;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use kvmi_lab_control::{FromL1, LoadedModule, MAX_LINE_BYTES, ToL1, Verdict, encode};
use kvmi_lab_scenarios::{Context, Failure, modules};
use rustix::mount::{MountFlags, mount};
use rustix::process::setsid;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, Termios, Winsize, tcdrain, tcgetattr,
    tcsetattr, tcsetwinsize,
};

pub(crate) use introspect::introspect;
pub(crate) use vm::vm;

/// The guest that runs when the prompt appears.
const GUEST: &str = "counter";
const VCPUS: usize = 2;

/// The one program that L1 has beside ours.
const BUSYBOX: &str = "/bin/busybox";

/// Programs of ours that a person calls by name: roles of this one.
const COMMANDS: &[&str] = &["vm", "introspect", "kvmi"];

/// The console's size, and what kind of terminal L0 has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen<'a> {
    pub(crate) rows: &'a str,
    pub(crate) columns: &'a str,
    pub(crate) terminal: &'a str,
}

/// In process 1: all of it, to the end of the shell.
pub(crate) fn run(channel: &File, order: &ToL1) -> anyhow::Result<()> {
    let status = Command::new("/proc/self/exe")
        .args(["shell", &encode(order)])
        // What VMMs say belongs to the kernel's console, not between what a person types.
        .stdin(channel.try_clone()?)
        .status()
        .context("start the shell's process")?;
    ensure!(status.success(), "the shell's process ended: {status}");
    Ok(())
}

/// In a process of its own, whose standard input is the channel: sets up, tells L0, and holds the guest while the shell runs.
pub(crate) fn shell(order: &str) -> anyhow::Result<()> {
    let ToL1::Shell {
        rows,
        columns,
        terminal,
        symbols,
    } = serde_json::from_str(order)?
    else {
        bail!("the order is no shell: {order}");
    };
    let mut channel = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut tell = |message: &FromL1| channel.write_all(encode(message).as_bytes());
    let vm = match set_up() {
        Ok(vm) => vm,
        Err(e) => {
            let message = format!("{e:#}");
            tell(&FromL1::Done {
                verdict: Verdict::Fail { message },
            })?;
            return Err(e);
        }
    };
    if symbols {
        for text in kernel_functions()? {
            tell(&FromL1::Symbols { text })?;
        }
    }
    tell(&FromL1::Prompt {
        guest: GUEST.to_owned(),
        vcpus: VCPUS,
        vmm: vm.process_id(),
        introspection: modules::Origin::under_test() == modules::Origin::Kvmi,
        modules: loaded_modules()?,
    })?;
    tcdrain(&channel)?;
    Command::new("/proc/self/exe")
        .args(["terminal", &rows.to_string(), &columns.to_string(), &terminal])
        .stdin(Stdio::null())
        .status()
        .context("start the terminal's process")?;
    vm.exit().map_err(readable)
}

/// Address, kind and name of each of the kernel's own functions, a line each, in parts that fit into a message.
fn kernel_functions() -> anyhow::Result<Vec<String>> {
    let all = fs::read_to_string("/proc/kallsyms").context("read /proc/kallsyms")?;
    let is_function = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let is_code = words.next().is_some_and(|kind| matches!(kind, "t" | "T" | "w" | "W"));
        // A module's has the module's name behind its own.
        is_code && words.count() == 1
    };
    let mut parts = vec![String::new()];
    for line in all.lines().filter(is_function) {
        match parts.last_mut() {
            Some(part) if part.len() + line.len() < MAX_LINE_BYTES / 2 => {
                part.push_str(line);
                part.push('\n');
            }
            _ => parts.push(format!("{line}\n")),
        }
    }
    Ok(parts)
}

fn set_up() -> anyhow::Result<kvmi_lab_scenarios::vmm::Vm> {
    for (kind, folder) in [("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing")] {
        // Not every kernel has them; then there is that much less to look at.
        let _ = mount(kind, folder, kind, MountFlags::empty(), None::<&std::ffi::CStr>);
    }
    let installed = Command::new(BUSYBOX)
        .args(["--install", "-s", "/bin"])
        .status()
        .with_context(|| format!("run {BUSYBOX}; the image for a shell has it"))?;
    ensure!(
        installed.success(),
        "{BUSYBOX} cannot put its programs into /bin: {installed}"
    );
    for command in COMMANDS {
        let path = format!("/bin/{command}");
        fs::write(&path, format!("#!/bin/sh\nexec /init {command} \"$@\"\n"))
            .with_context(|| format!("write {path}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir_all("/etc")?;
    symlink("/proc/mounts", "/etc/mtab").context("name what is mounted")?;
    let context = Context::new(modules::backend()?, 0);
    context.running_vm(GUEST, VCPUS).map_err(readable)
}

fn readable(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure:?}")
}

/// The modules of KVM and where the parts of each lie in memory.
fn loaded_modules() -> anyhow::Result<Vec<LoadedModule>> {
    let vendor = modules::vendor_module(modules::backend()?);
    ["kvm", vendor].into_iter().map(loaded_module).collect()
}

fn loaded_module(file: &str) -> anyhow::Result<LoadedModule> {
    let folder = format!("/sys/module/{}/sections", file.replace('-', "_"));
    let mut sections = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path())?;
        let address = u64::from_str_radix(text.trim().trim_start_matches("0x"), 16)
            .with_context(|| format!("{}: `{}` is no address", entry.path().display(), text.trim()))?;
        sections.push((entry.file_name().to_string_lossy().into_owned(), address));
    }
    sections.sort();
    Ok(LoadedModule {
        file: format!("{file}.ko"),
        sections,
    })
}

/// In a process of its own: makes the channel its terminal and becomes the shell.
pub(crate) fn terminal(screen: Screen<'_>) -> anyhow::Result<()> {
    setsid()?;
    // The first terminal that the leader of a session opens is its own.
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(crate::init::CHANNEL)
        .context("open the terminal")?;
    let mut settings = tcgetattr(&terminal)?;
    for_people(&mut settings);
    tcsetattr(&terminal, OptionalActions::Now, &settings)?;
    let size = Winsize {
        ws_row: screen.rows.parse()?,
        ws_col: screen.columns.parse()?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size)?;
    let error = Command::new(BUSYBOX)
        .arg("sh")
        .env_clear()
        .envs([
            ("PATH", "/bin"),
            ("HOME", "/"),
            ("TERM", screen.terminal),
            ("PS1", "L1 # "),
        ])
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal)
        .exec();
    Err(error).context("become the shell")
}

/// What turns a wire into a terminal: echo, lines that can be edited, keys that interrupt.
fn for_people(settings: &mut Termios) {
    settings.input_modes |= InputModes::ICRNL | InputModes::BRKINT;
    settings.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    settings.control_modes |= ControlModes::CREAD | ControlModes::CLOCAL;
    settings.local_modes |= LocalModes::ISIG
        | LocalModes::ICANON
        | LocalModes::IEXTEN
        | LocalModes::ECHO
        | LocalModes::ECHOE
        | LocalModes::ECHOK
        | LocalModes::ECHOCTL
        | LocalModes::ECHOKE;
}

/// What is typed behind one of our commands.
#[derive(Debug, PartialEq, Eq)]
enum Typed<T> {
    Help,
    This(T),
}

/// Takes what was typed apart; what the command cannot do anything with ends in a hint at its help.
fn typed<T>(
    command: &str,
    arguments: &[&str],
    parse: impl FnOnce(&[&str]) -> anyhow::Result<T>,
) -> anyhow::Result<Typed<T>> {
    if arguments.iter().any(|word| matches!(*word, "-h" | "--help")) {
        return Ok(Typed::Help);
    }
    match parse(arguments) {
        Ok(this) => Ok(Typed::This(this)),
        Err(e) => bail!("{e:#}; for help: {command} --help"),
    }
}

/// The name of the command of a person's that this process is, for its errors.
pub(crate) fn command(arguments: &[&str]) -> Option<&'static str> {
    let first = arguments.first()?;
    COMMANDS.iter().copied().find(|command| command == first)
}
