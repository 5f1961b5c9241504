// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running tests, each in a machine of its own that goes on from its lane's point.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use kvmi_lab_control::{Lane, SelftestMode};
use kvmi_lab_machine::lab_run::{LabRun, NotTried};
use kvmi_lab_machine::outcome::Record;

use crate::build::Programs;
use crate::expected::Expected;

/// One test in one mode on one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The lane.
    pub lane: Lane,
    /// The mode.
    pub mode: SelftestMode,
    /// The test.
    pub test: String,
}

/// What is to be run of all tests: on each lane, in each mode, those that are wanted and not left out. Stock KVM comes first.
#[must_use]
pub fn jobs(
    lanes: &[Lane],
    modes: &[SelftestMode],
    programs: &Programs,
    expected: &Expected,
    is_wanted: impl Fn(&str) -> bool,
) -> Vec<Job> {
    let places = lanes
        .iter()
        .flat_map(|&lane| modes.iter().map(move |&mode| (lane, mode)));
    let all = places.flat_map(|(lane, mode)| programs.keys().map(move |test| (lane, mode, test)));
    let runs = all.filter(|&(lane, mode, test)| is_wanted(test) && expected.left_out(lane, mode, test).is_none());
    let job = |(lane, mode, test): (Lane, SelftestMode, &String)| Job {
        lane,
        mode,
        test: test.clone(),
    };
    runs.map(job).collect()
}

/// Runs tests, so many at a time; `ended` is told of each as it ends.
///
/// # Errors
///
/// [`NotTried`]: what is under way is finished, and no further test begun.
pub fn run(
    lab: &LabRun,
    jobs: Vec<Job>,
    at_a_time: usize,
    mut ended: impl FnMut(&Record),
) -> Result<Vec<Record>, NotTried> {
    let queue = Mutex::new(VecDeque::from(jobs));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (send, receive) = mpsc::channel();
    let mut records = Vec::new();
    let mut failed = None;
    thread::scope(|scope| {
        for _ in 0..at_a_time.max(1) {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some(job) = next() {
                    if send.send(lab.run(job.lane, &job.mode.run_name(&job.test))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for result in &receive {
            match result {
                Ok(record) => {
                    ended(&record);
                    records.push(record);
                }
                Err(error) => {
                    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    failed = Some(error);
                }
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(records),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_what_is_wanted_and_not_left_out() {
        let table = "each_push = []\n[[left_out]]\ntests = ['big']\nmodes = ['on']\nreason = 'x'\n";
        let programs = ["big", "small", "other"]
            .map(|name| (name.to_owned(), name.into()))
            .into();
        let (lanes, modes) = ([Lane::SvmTcg], [SelftestMode::Stock, SelftestMode::On]);
        let table = Expected::parse(table).unwrap();
        let jobs = jobs(&lanes, &modes, &programs, &table, |test| test != "other");
        let named: Vec<String> = jobs.iter().map(|j| format!("{} {}", j.mode, j.test)).collect();
        assert_eq!(named, ["stock big", "stock small", "on small"]);
    }
}
