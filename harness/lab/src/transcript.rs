// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether two runs of a scenario said the same.

use std::fs;
use std::path::Path;

use kvmi_lab_machine::outcome::Record;
use kvmi_lab_machine::run_folder;

/// What L1 says in a run, by the names of the logs that keep it.
const SAID_BY_L1: &[&str] = &[run_folder::CONSOLE, run_folder::CONTROL];

/// Verdicts of machines that L0 ended, at an instant that nothing in the machine decides.
const ENDED_BY_L0: &[&str] = &["timeout", "lost"];

/// Whether two runs said the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transcripts {
    /// Kernel log and control channel are the same to the byte, L1's time stamps included: so many lines.
    Same(usize),
    /// The first line that differs, in which file.
    Differ(String),
}

/// Whether a scenario that ended so decided by itself when. Then it must say the same each time in Bochs.
pub fn ended_by_itself(record: &Record) -> bool {
    !ENDED_BY_L0.contains(&record.outcome.word())
}

/// Compares what L1 said in two runs, by their folders.
pub fn compare(there: &Path, here: &Path) -> Transcripts {
    let mut lines = 0;
    for name in SAID_BY_L1 {
        let read = |folder: &Path| said_by_l1(name, &fs::read(folder.join(name)).unwrap_or_default());
        let (there, here) = (read(there), read(here));
        if here.is_empty() {
            return Transcripts::Differ(format!("{name} is empty"));
        }
        let same = there.lines().zip(here.lines()).take_while(|(a, b)| a == b).count();
        if there != here {
            let line = |text: &str| text.lines().nth(same).unwrap_or("(end)").to_owned();
            return Transcripts::Differ(format!(
                "{name}:{}: {} here, {} there",
                same + 1,
                line(&here),
                line(&there)
            ));
        }
        lines += same;
    }
    Transcripts::Same(lines)
}

/// A log without the times of L0, which stand in front of each line of the control channel's.
fn said_by_l1(name: &str, log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    if name != run_folder::CONTROL {
        return text.into_owned();
    }
    let without_time = |line: &str| line.split_once("] ").map_or(line, |(_, said)| said).to_owned() + "\n";
    text.lines().map(without_time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(console: &str, control: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(run_folder::CONSOLE), console).unwrap();
        fs::write(dir.path().join(run_folder::CONTROL), control).unwrap();
        dir
    }

    #[test]
    fn times_of_l1_count_and_times_of_l0_do_not() {
        let one = folder("[ 1.000001] a\n", "[    0.001] < x\n[    0.002] < y\n");
        let later = folder("[ 1.000001] a\n", "[    0.501] < x\n[    0.602] < y\n");
        assert_eq!(compare(one.path(), later.path()), Transcripts::Same(3));
        let other = folder("[ 1.000002] a\n", "[    0.001] < x\n[    0.002] < y\n");
        let said = "console.log:1: [ 1.000002] a here, [ 1.000001] a there";
        assert_eq!(compare(one.path(), other.path()), Transcripts::Differ(said.to_owned()));
        let shorter = folder("[ 1.000001] a\n", "[    0.001] < x\n");
        assert_eq!(
            compare(one.path(), shorter.path()),
            Transcripts::Differ("control.log:2: (end) here, < y there".to_owned())
        );
    }

    #[test]
    fn who_said_nothing_did_not_say_the_same() {
        let empty = folder("", "");
        assert_eq!(
            compare(empty.path(), empty.path()),
            Transcripts::Differ("console.log is empty".to_owned())
        );
    }
}
