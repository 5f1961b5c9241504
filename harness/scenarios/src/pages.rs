// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page access: what is denied is told, and let through once when the tool says so, whatever the instruction.

mod at_once;
mod avx;
mod commands;
mod delivery;
mod emulated;
mod end;
mod half_way;
mod instructions;
mod kinds;
mod many;
mod memory;
mod others;
mod page_tables;
mod shadow;
mod stepped;
mod underneath;
mod unserved;

use std::time::Duration;

use kvmi::command::{Command, GetPageAccess, SetPageAccess};
use kvmi_guests::{Access, Op};
use kvmi_lab_control::Backend;
use kvmi_uapi::event::{CONTINUE, PF, Pf};
use kvmi_uapi::{MAX_PAGE_ACCESS_ENTRIES, PageAccessEntry};

use crate::vmm::Vm;
use crate::wire::{Answer, Event, Wire};
use crate::{Context, Failure, Scenario, check, check_eq};

const R: u8 = PageAccessEntry::READ;
const W: u8 = PageAccessEntry::WRITE;
const X: u8 = PageAccessEntry::EXEC;
/// What a page may be that nobody restricts.
const ALL: u8 = R | W | X;
const PAGE: u64 = 4096;

pub(crate) fn scenarios() -> Vec<Scenario> {
    [
        commands::SCENARIOS,
        kinds::SCENARIOS,
        instructions::SCENARIOS,
        page_tables::SCENARIOS,
        avx::SCENARIOS,
        at_once::SCENARIOS,
        stepped::SCENARIOS,
        emulated::SCENARIOS,
        half_way::SCENARIOS,
        delivery::SCENARIOS,
        others::SCENARIOS,
        memory::SCENARIOS,
        underneath::SCENARIOS,
        many::SCENARIOS,
        unserved::SCENARIOS,
        end::SCENARIOS,
        shadow::SCENARIOS,
    ]
    .concat()
}

/// Entries as a message carries them.
fn entries(access: &[(u64, u8)]) -> Vec<PageAccessEntry> {
    let entry = |&(gpa, access): &(u64, u8)| PageAccessEntry {
        gpa,
        access,
        ..Default::default()
    };
    access.iter().map(entry).collect()
}

/// The payload of a request about these pages.
pub(crate) fn request(access: &[(u64, u8)]) -> Vec<u8> {
    SetPageAccess {
        entries: &entries(access),
    }
    .payload()
}

impl Wire {
    /// VM_SET_PAGE_ACCESS.
    pub(crate) fn set_page_access(&mut self, access: &[(u64, u8)]) -> Result<Answer, Failure> {
        self.ask(&SetPageAccess {
            entries: &entries(access),
        })
    }

    /// VM_SET_PAGE_ACCESS of as many pages as there are, which must succeed.
    pub(crate) fn restrict(&mut self, access: &[(u64, u8)]) -> Result<(), Failure> {
        for some in access.chunks(MAX_PAGE_ACCESS_ENTRIES) {
            check_eq!(
                self.set_page_access(some)?,
                Ok(vec![]),
                "VM_SET_PAGE_ACCESS of {some:x?}"
            );
        }
        Ok(())
    }

    /// VM_GET_PAGE_ACCESS, which must succeed: the access of each page.
    pub(crate) fn page_access(&mut self, gpas: &[u64]) -> Result<Vec<u8>, Failure> {
        let got = self.get(&GetPageAccess { gpas }, gpas.len() * size_of::<PageAccessEntry>())?;
        check_eq!(
            got.iter().map(|entry| entry.gpa).collect::<Vec<_>>(),
            gpas,
            "pages of VM_GET_PAGE_ACCESS"
        );
        Ok(got.iter().map(|entry| entry.access).collect())
    }
}

/// A guest that accesses memory, hooked, with PF switched on.
struct Watched {
    vm: Vm,
    wire: Wire,
    backend: Backend,
}

impl Watched {
    fn start(context: &mut Context, vcpus: usize) -> Result<Self, Failure> {
        context.stage("start", Duration::from_secs(20));
        let (vm, mut wire) = context.hooked_vm("accesses", vcpus)?;
        for vcpu in 0..vcpus {
            wire.control_event(vcpu as u16, PF, true)?;
        }
        Ok(Self {
            vm,
            wire,
            backend: context.backend,
        })
    }

    /// Has vCPU 0 begin an access; the command's number.
    fn begin(&self, what: Access, args: [u64; 3]) -> Result<u64, Failure> {
        self.vm.command(0, Op::Access, [what as u64, args[0], args[1], args[2]])
    }

    /// Has vCPU 0 make an access that nothing is told of; its result.
    fn silent(&mut self, context: &Context, what: Access, args: [u64; 3]) -> Result<u64, Failure> {
        let number = self.begin(what, args)?;
        let result = self.vm.finished(context, 0, number)?;
        self.wire.expect_no_event()?;
        Ok(result)
    }

    /// The next event, which must be PF of vCPU 0 with this kind at this address.
    #[track_caller]
    fn expect(&mut self, kind: u8, gpa: u64) -> Result<Event, Failure> {
        let (event, data) = self.pf()?;
        check_eq!((data.access, data.gpa), (kind, gpa), "access and gpa of PF");
        Ok(event)
    }

    /// The next event, which must be PF of vCPU 0. Memory is mapped where it lies.
    #[track_caller]
    fn pf(&mut self) -> Result<(Event, Pf), Failure> {
        let event = self.wire.expect_event(PF, 0)?;
        let data = event.data::<Pf>()?;
        // SVM does not tell it; KVM's emulator knows it on both.
        let is_told = data.gva == data.gpa || (data.gva == u64::MAX && self.backend == Backend::Svm);
        check!(is_told, "gva {:#x} of PF at {:#x}", data.gva, data.gpa);
        check_eq!((data.pad1, data.pad2, data.pad3), (0, 0, 0), "padding of PF");
        Ok((event, data))
    }

    /// The same, let through.
    #[track_caller]
    fn let_through(&mut self, kind: u8, gpa: u64) -> Result<(), Failure> {
        let event = self.expect(kind, gpa)?;
        self.wire.reply(&event, CONTINUE)
    }

    /// Has vCPU 0 make an access of which exactly this is told, all let through; its result.
    #[track_caller]
    fn told(&mut self, context: &Context, access: (Access, [u64; 3]), wanted: &[(u8, u64)]) -> Result<u64, Failure> {
        let number = self.begin(access.0, access.1)?;
        for &(kind, gpa) in wanted {
            self.let_through(kind, gpa)
                .map_err(|e| e.after(&format!("{:?} {:x?}", access.0, access.1)))?;
        }
        let result = self.vm.finished(context, 0, number)?;
        self.wire.expect_no_event()?;
        Ok(result)
    }

    /// The same for so many accesses that read and write at once: each is told as a write, or, by a CPU that reads first, as a read
    /// before, if that is denied as well.
    #[track_caller]
    fn told_read_modify_write(
        &mut self,
        context: &Context,
        access: (Access, [u64; 3]),
        gpa: u64,
        times: usize,
    ) -> Result<u64, Failure> {
        let number = self.begin(access.0, access.1)?;
        for _ in 0..times {
            let (mut event, mut data) = self.pf()?;
            if data.access == R {
                check_eq!(data.gpa, gpa, "gpa of the read");
                self.wire.reply(&event, CONTINUE)?;
                (event, data) = self.pf()?;
            }
            check_eq!((data.access, data.gpa), (W, gpa), "access and gpa of PF");
            self.wire.reply(&event, CONTINUE)?;
        }
        let result = self.vm.finished(context, 0, number)?;
        self.wire.expect_no_event()?;
        Ok(result)
    }

    /// Lets so many accesses through in whatever order they come: which page the CPU looks at first is its own business.
    /// `at` looks at the guest while an event is open.
    #[track_caller]
    fn let_all_through(
        &mut self,
        wanted: &[(u8, u64)],
        at: impl Fn(&Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut left = wanted.to_vec();
        while !left.is_empty() {
            let (event, data) = self.pf()?;
            at(self)?;
            let place = left.iter().position(|&wanted| wanted == (data.access, data.gpa));
            let Some(place) = place else {
                return Err(Failure::new(format!("PF {data:x?}, expected one of {left:x?}")));
            };
            left.remove(place);
            self.wire.reply(&event, CONTINUE)?;
        }
        Ok(())
    }

    /// A word of guest memory.
    fn word(&self, gpa: u64) -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        self.vm.guest.read(gpa, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// `mov rax, value` and `ret`, 10 bytes and 1.
fn code_that_returns(value: u64) -> Vec<u8> {
    [&[0x48, 0xb8], &value.to_le_bytes()[..], &[0xc3]].concat()
}
