// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool `introspect`, as a person calls it in L1: right about a paged guest, and nothing is left of it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kvmi_guests::layout::{PAGE_DIRECTORY, SCRATCH};
use rustix::process::{Pid, Signal, kill_process};

use crate::vmm::{Vm, field};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "client::introspect",
        "the tool `introspect` shows the code of a guest whose linear addresses are not its physical ones",
        shows_code,
    ),
    scenario(
        "client::introspect_ended",
        "`introspect` that fails, or that a signal ends, leaves no VM hooked",
        ended,
    ),
];

/// What one entry of the page directory maps, in bytes.
const LARGE_PAGE: u64 = 2 << 20;

/// A linear address at which there is no memory until a scenario maps some.
const ELSEWHERE: u64 = 0x3000_0000;

fn start(vm: &Vm) -> Result<Child, Failure> {
    Ok(Command::new("/proc/self/exe")
        .args(["introspect", &vm.process_id().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?)
}

fn run(vm: &Vm) -> Result<Output, Failure> {
    Ok(start(vm)?.wait_with_output()?)
}

/// Maps a large page at a linear address; `None`: nothing.
fn map(vm: &Vm, linear: u64, gpa: Option<u64>) -> Result<(), Failure> {
    /// Present, writable, a large page.
    const FLAGS: u64 = 0x83;
    let entry = gpa.map_or(0, |gpa| gpa | FLAGS);
    vm.guest
        .write(PAGE_DIRECTORY + linear / LARGE_PAGE * 8, &entry.to_ne_bytes())
}

/// Has a vCPU go on at another linear address.
fn go_to(vm: &Vm, vcpu: usize, rip: impl FnOnce(u64) -> u64) -> Result<(), Failure> {
    vm.pause(vcpu)?;
    let mut regs = vm.regs(vcpu)?;
    regs.rip = rip(regs.rip);
    vm.set_regs(vcpu, regs)?;
    vm.resume(vcpu)
}

fn shows_code(context: &mut Context) -> Result<(), Failure> {
    /// A jump to itself.
    const STAY: [u8; 2] = [0xeb, 0xfe];
    /// Where it ends, nothing is mapped.
    const END: u64 = ELSEWHERE + 2 * LARGE_PAGE;
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    map(&vm, ELSEWHERE, Some(0))?;
    map(&vm, ELSEWHERE + LARGE_PAGE, Some(SCRATCH))?;
    map(&vm, END, None)?;
    vm.guest.write(SCRATCH + LARGE_PAGE - 2, &STAY)?;
    go_to(&vm, 0, |rip| rip + ELSEWHERE)?;
    go_to(&vm, 1, |_| END - 2)?;
    let before = vm.guest.field(0, field!(counter))?;
    context.wait_for("the guest to count on", || {
        Ok(vm.guest.field(0, field!(counter))? > before)
    })?;
    // What the first one does is not in the second one's way.
    for time in ["first", "second"] {
        context.stage(&format!("the {time} look"), Duration::from_secs(20));
        let output = run(&vm)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        check!(output.status.success(), "introspect: {}: {said}{errors}", output.status);
        context.log(&said);
        let Some((linear, bytes)) = said
            .lines()
            .find_map(|line| line.strip_prefix("  its code at linear address 0x")?.split_once(": "))
        else {
            return Err(Failure::new(format!("no code in what introspect said: {said}")));
        };
        let address = u64::from_str_radix(linear, 16)?;
        check!(
            (ELSEWHERE..ELSEWHERE + LARGE_PAGE).contains(&address),
            "vCPU 0 stands at {address:#x}"
        );
        let mut wanted = [0; 16];
        vm.guest.read(address - ELSEWHERE, &mut wanted)?;
        let wanted: Vec<String> = wanted.iter().map(|byte| format!("{byte:02x}")).collect();
        check_eq!(bytes, wanted.join(" "), "the code of vCPU 0");
        for line in [
            format!("  its code at linear address {:#x}: eb fe", END - 2),
            format!("  the guest's page tables map nothing at linear address {END:#x}"),
        ] {
            check!(said.lines().any(|said| said == line), "`{line}` is not in: {said}");
        }
    }
    still_free(context, &vm)?;
    vm.exit()
}

/// The VM can be hooked: nobody has it.
fn still_free(context: &Context, vm: &Vm) -> Result<(), Failure> {
    context.hook(vm)?.expect_version()?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    Ok(())
}

fn ended(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 1)?;
    context.stage("another tool has the VM", Duration::from_secs(20));
    let mut wire = context.hook(&vm)?;
    let output = run(&vm)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(1), "exit status");
    check!(errors.contains("introspected already"), "it says: {errors}");
    wire.expect_version()?;
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    context.stage("nobody listens to it", Duration::from_secs(20));
    let mut tool = start(&vm)?;
    drop(tool.stdout.take());
    check_eq!(tool.wait()?.code(), Some(1), "exit status");
    still_free(context, &vm)?;
    // Out of KVM_RUN, the vCPU does not stop for the tool, which waits for it.
    vm.pause(0)?;
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        context.stage(&format!("signal {}", signal.as_raw()), Duration::from_secs(20));
        let mut tool = start(&vm)?;
        let stdout = tool.stdout.take().ok_or_else(|| Failure::new("no standard output"))?;
        let mut said = BufReader::new(stdout);
        let mut line = String::new();
        said.read_line(&mut line)?;
        check!(line.contains("hooked, protocol version 1, 1 vCPUs"), "it says: {line}");
        kill_process(Pid::from_child(&tool), signal)?;
        let status = tool.wait()?;
        said.read_to_string(&mut line)?;
        check_eq!(
            status.signal(),
            Some(signal.as_raw()),
            "the signal that ended it; it said: {line}"
        );
        still_free(context, &vm)?;
    }
    vm.exit()
}
