// SPDX-License-Identifier: MIT OR Apache-2.0
//! A prompt in L1: the modules loaded, a guest running, and for those who want it a debugger at its kernel.

mod debugger;
mod terminal;

use anyhow::{Context, Result, bail};
use kvmi_lab_control::{Backend, Lane};
use kvmi_lab_machine::pace::Pace;
use kvmi_lab_machine::prompt::{About, Prompt};

use self::debugger::Gdb;

use crate::e2e;
use crate::emulators;
use crate::exit;
use crate::hardware;
use crate::kernel::{self, Built, Choice};
use crate::lab;
use crate::output::complain;
use crate::points;
use crate::table::relative;
use crate::workshop::Workshop;
use crate::{apt, busybox};

/// Where in a run's folder of a lane the logs are.
const FOLDER: &str = "shell";

/// What is wanted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The lane
    #[arg(long, default_value_t = Lane::SvmTcg)]
    lane: Lane,
    #[command(flatten)]
    choice: Choice,
    /// Have QEMU's debug stub listen for gdb, and say how to call it; not where L1 runs in Bochs
    #[arg(long)]
    gdb: bool,
}

/// Has L1 stand at a prompt until the person there leaves.
pub(crate) fn run(shop: &Workshop, wanted: &Arguments) -> Result<u8> {
    let lane = wanted.lane;
    apt::require_debian()?;
    if wanted.gdb {
        debugger::require(lane)?;
    }
    let mut facts = hardware::look();
    apt::install_needed(shop)?;
    let built = kernel::build(shop, &wanted.choice)?;
    let fetched = emulators::fetch(shop)?;
    if !lane.platform().is_emulated() {
        let kernel = built.kernel.image.join("vmlinuz");
        hardware::try_guest(shop, &mut facts, &fetched.emulators, &kernel)?;
        if let Some(lack) = hardware::lack(&facts, lane) {
            bail!("lane {lane} does not run on this machine: {}", lack.text());
        }
    }
    let boot = lab::boot_with(shop, &built, Some(&busybox::fetch(shop)?))?;
    let folder = e2e::new_folder(shop)?;
    let standing = points::prepare(shop, &[lane], Pace::Host, &boot, &fetched, &folder)?;
    let standing = standing.first().context("no lane was prepared")?;
    let logs = folder.join(lane.name()).join(FOLDER);
    let gdb = wanted.gdb.then(|| Gdb::new(shop, &built)).transpose()?;
    let screen = terminal::screen();
    let prompt = Prompt::open(&standing.prepared, &logs, &screen, gdb.as_ref().map(Gdb::wishes))?;
    complain!("{}", welcome(lane, &built, &prompt.about));
    if let Some(gdb) = &gdb {
        let script = gdb.write(shop, &logs, &built, &prompt.about)?;
        complain!("{}", debugger::how_to(&script));
    }
    complain!("");
    let left = terminal::attach(prompt)?;
    let off = match left {
        terminal::Left::Off => "L1 is off",
        terminal::Left::Escaped => "L1 was ended",
    };
    complain!(
        "\n{off}; its kernel's log: {}",
        relative(&logs.join("console.log"), &shop.checkout)
    );
    Ok(exit::OK)
}

/// What there is to try.
fn welcome(lane: Lane, built: &Built, about: &About) -> String {
    let module = match lane.backend() {
        Backend::Svm => "kvm-amd",
        Backend::Vmx => "kvm-intel",
    };
    let with = if about.introspection {
        "with introspection"
    } else {
        "without introspection"
    };
    let About { guest, vcpus, vmm, .. } = about;
    let mut lines = vec![
        String::new(),
        format!(
            "{lane}: {} with {module}, {with}; guest {guest} runs on {vcpus} vCPUs, its VMM is process {vmm}",
            built.kernel.version
        ),
        String::new(),
    ];
    let mut row = |command: &str, what: &str| lines.push(format!("  {command:42} {what}"));
    if about.introspection {
        row("introspect", "hook that guest, look at its vCPUs, unhook");
    }
    row("vm storm 2 &", "start another guest; `vm` lists them");
    row("kill PROCESS", "end a guest with its VMM");
    row("head /sys/kernel/debug/kvm/exits", "what KVM counts; ls that folder");
    row("dmesg | tail", "what L1's kernel says");
    row("exit", "power off; Ctrl-] ends L1 whatever it does");
    lines.join("\n")
}
