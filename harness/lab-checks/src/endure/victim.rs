// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processes of a run, and whose turn it is.

use std::fs;
use std::path::Path;

use rustix::process::Pid;

/// Who is killed at a moment; in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// xtask, that all others hang on.
    Xtask,
    /// The emulator; where it has forked, one of them.
    Emulator,
    /// The test that runs one scenario: L1's runner on this side.
    Runner,
    /// Whoever is there.
    Anyone,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Xtask, Self::Emulator, Self::Runner, Self::Anyone];

    pub(super) fn at(moment: u32) -> Self {
        Self::ALL[moment as usize % Self::ALL.len()]
    }

    /// Whether it is this process of the run of that xtask.
    pub(super) fn is(self, process: &Process, xtask: u32) -> bool {
        match self {
            Self::Xtask => process.id == xtask,
            Self::Emulator => is_emulator(&process.name),
            Self::Runner => process.name.starts_with(RUNNER),
            Self::Anyone => true,
        }
    }
}

/// How the name of the program begins that nextest runs for each scenario.
const RUNNER: &str = "lab-";

fn is_emulator(program: &str) -> bool {
    program.starts_with("qemu-system") || program == "bochs-bin"
}

/// A process of a run.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: u32,
    /// The program, without its folder; an emulator goes by its own name and not its loader's.
    pub(super) name: String,
}

impl Process {
    pub(super) fn named(id: u32, place: &Path) -> Option<Self> {
        let line = fs::read(place.join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|&b| b == 0).map(String::from_utf8_lossy).collect();
        let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
        let emulator = words.iter().map(|w| base(w)).find(|w| is_emulator(w));
        let name = emulator.unwrap_or_else(|| base(&words[0]));
        // One that has ended and was not waited for has no command line.
        (!name.is_empty()).then_some(Self { id, name })
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.id.try_into().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_process_has_its_turn() {
        let process = |id, name: &str| Process {
            id,
            name: name.to_owned(),
        };
        let processes = [
            process(7, "xtask"),
            process(8, "qemu-system-x86_64"),
            process(9, "bochs-bin"),
            process(10, "lab-0123"),
            process(11, "cargo-nextest"),
        ];
        let of = |moment| {
            let victim = Victim::at(moment);
            let victims = processes.iter().filter(|p| victim.is(p, 7));
            victims.map(|p| p.id).collect::<Vec<_>>()
        };
        assert_eq!([of(4), of(1), of(2)], [vec![7], vec![8, 9], vec![10]]);
        assert_eq!(of(3).len(), processes.len());
    }
}
