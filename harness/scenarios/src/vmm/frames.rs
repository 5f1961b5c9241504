// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page frames that hold a slot's memory, as L1's kernel knows them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::Vm;
use super::request::{Answer, Request};
use crate::{Failure, check};

const PAGE: u64 = 4096;
/// Of an entry of `/proc/PID/pagemap`: the page is there; where.
const PRESENT: u64 = 1 << 63;
const NUMBER: u64 = (1 << 55) - 1;
/// Of an entry of `/proc/kpageflags`.
const THP: u64 = 1 << 22;

/// A page frame of L1's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub number: u64,
    /// It is part of a huge page.
    pub is_huge: bool,
}

impl Vm {
    /// The frames of so many pages of a slot of anonymous memory.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, no such slot, or a page that has no frame.
    pub fn frames(&self, gpa: u64, pages: u64) -> Result<Vec<Frame>, Failure> {
        let address = self.host_address(gpa)?;
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid()))?;
        let flags = File::open("/proc/kpageflags")?;
        let frame = |page: u64| {
            let entry = word(&pagemap, address / PAGE + page)?;
            check!(
                entry & PRESENT != 0,
                "the page at {:#x} has no frame: {entry:#x}",
                gpa + page * PAGE
            );
            let number = entry & NUMBER;
            // Its bit for KSM is no use: some kernels set it for all anonymous memory.
            let is_huge = word(&flags, number)? & THP != 0;
            Ok(Frame { number, is_huge })
        };
        (0..pages).map(frame).collect()
    }

    /// Has L1's kernel split the huge pages that hold memory of a slot of anonymous memory; debugfs is mounted.
    ///
    /// # Errors
    ///
    /// A VMM that is gone, no such slot, or a kernel that does not.
    pub fn split(&self, gpa: u64, bytes: u64) -> Result<(), Failure> {
        let start = self.host_address(gpa)?;
        let order = format!("{},{start:#x},{:#x}", self.pid(), start + bytes);
        Ok(fs::write("/sys/kernel/debug/split_huge_pages", order)?)
    }

    fn host_address(&self, gpa: u64) -> Result<u64, Failure> {
        match self.ask(&Request::HostAddress { gpa })? {
            Ok(Answer::Number(address)) => Ok(address as u64),
            other => Err(Failure::new(format!("no address of {gpa:#x}: {other:?}"))),
        }
    }
}

fn word(file: &File, index: u64) -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 8 * index)?;
    Ok(u64::from_ne_bytes(bytes))
}
