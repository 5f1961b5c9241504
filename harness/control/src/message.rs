// SPDX-License-Identifier: MIT OR Apache-2.0
//! The messages themselves.

use serde::{Deserialize, Serialize};

use crate::lane::Backend;

/// The byte that L1 writes after [`FromL1::Ready`], outside any line: every scenario starts from the instant in which it left.
///
/// It cannot occur inside a line, because JSON escapes control characters.
pub const SNAPSHOT: u8 = 0x06;

/// Who says, in a [`FromL1::Log`], where the kernel's modules are in memory: one log a module, `NAME SECTION=ADDRESS …`. Said by an L1 that has
/// its order from its command line.
pub const PLACES: &str = "modules";

/// The kernel argument that names the scenario where L1 is to run one without being told: it then says neither Ready nor the snapshot.
pub const SCENARIO: &str = "kvmi_lab.scenario";

/// The kernel argument that goes with [`SCENARIO`] and says where random numbers start.
pub const SEED: &str = "kvmi_lab.seed";

/// The kernel argument that has L1 hook a VM, and unhook it, before the snapshot: KVM's code is then patched for introspection while no guest runs.
pub const HOOK_BEFORE_SNAPSHOT: &str = "kvmi_lab.hook_before_snapshot";

/// What L1 tells L0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromL1 {
    /// Modules are loaded and everything that can be prepared once is prepared.
    Ready {
        /// The vendor module that loaded.
        backend: Backend,
        /// `uname -r` of L1.
        kernel: String,
    },
    /// The scenario is found and its body starts now.
    Started {
        /// Its name, as in [`ToL1::Run`].
        scenario: String,
    },
    /// A stage of the scenario begins, and the one before ends.
    Stage {
        /// What happens in it, in a few words.
        name: String,
        /// How long it may take, in milliseconds of host time. L0 enforces it.
        deadline_ms: u64,
    },
    /// A line for the scenario's log.
    Log {
        /// Who says it: the runner, the VMM, a tool, a guest.
        source: String,
        /// What is said, without a newline at its end.
        text: String,
    },
    /// A KVMI message that went over the introspection socket, decoded, for the transcript.
    Transcript {
        /// The decoded message.
        text: String,
    },
    /// A number for benchmarks.
    Measure {
        /// What was measured.
        name: String,
        /// The figure.
        value: f64,
        /// Its unit, e.g. `instructions` or `ns`.
        unit: String,
    },
    /// Some of the kernel's functions, a line each: address in hexadecimal digits, kind, name.
    Symbols {
        /// Whole lines.
        text: String,
    },
    /// The last that L1 says before the channel becomes the terminal of [`ToL1::Shell`]: what there is to look at.
    Prompt {
        /// The guest that runs.
        guest: String,
        /// On how many vCPUs.
        vcpus: usize,
        /// The process that is its VMM.
        vmm: u32,
        /// Whether the modules can introspect.
        introspection: bool,
        /// KVM's modules.
        modules: Vec<LoadedModule>,
    },
    /// The scenario is over. Sent exactly once, the last message before power-off.
    Done {
        /// How it ended, as L1 sees it.
        verdict: Verdict,
    },
}

/// A module in the memory of L1's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModule {
    /// Its file, e.g. `kvm.ko`.
    pub file: String,
    /// Name and address of each of its sections.
    pub sections: Vec<(String, u64)>,
}

/// How a scenario ended, as L1 sees it. What only L0 can see (a lost machine, a passed deadline, a kernel complaint) comes on top.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Verdict {
    /// All that was to be shown was shown.
    Pass,
    /// Something was otherwise.
    Fail {
        /// What was expected and what happened.
        message: String,
    },
    /// It cannot run here.
    Skip {
        /// Why not.
        reason: String,
    },
}

/// What L0 tells L1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToL1 {
    /// Run one scenario, then power off.
    Run {
        /// Its name, e.g. `lifecycle::hook_then_unhook`.
        scenario: String,
        /// Where its random numbers start.
        seed: u64,
    },
    /// Run a guest and a shell whose terminal is this channel, then power off.
    Shell {
        /// Height of the terminal.
        rows: u16,
        /// Its width.
        columns: u16,
        /// What kind it is, as in `TERM`.
        terminal: String,
        /// Whether to say the names of the kernel's functions first.
        symbols: bool,
    },
}
