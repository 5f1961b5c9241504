// SPDX-License-Identifier: GPL-2.0-only
//! VM_SET_PAGE_ACCESS and VM_GET_PAGE_ACCESS: what may be asked for, page by page.

use kvmi_uapi::{
    Features, PageAccessEntry, VmPageAccess,
    error::{EINVAL, EOPNOTSUPP},
};
use zerocopy::FromBytes;

use crate::{
    effects::{KvmError, VmEffects},
    wire::{self, Message, REPLY_HEAD, put},
};

/// The one view that there is. Everything below takes a view, so that more can come.
const VIEW: u16 = 0;

const GFN_SHIFT: u32 = 12;
const READ: u8 = PageAccessEntry::READ;
const WRITE: u8 = PageAccessEntry::WRITE;
const EXEC: u8 = PageAccessEntry::EXEC;

/// Carries VM_SET_PAGE_ACCESS out and writes its reply; None when the connection is to be closed. All entries are tried;
/// the reply holds the first error.
pub(crate) fn set<E: VmEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    let entries = Entries::of(message)?;
    let expressible = effects.access_bits();
    let mut outcome = Ok(());
    for entry in entries {
        outcome = outcome.and(set_one(effects, expressible, entry));
    }
    effects.page_access_set();
    wire::finish(out, message.hdr, outcome, 0)
}

/// As [`set`] for VM_GET_PAGE_ACCESS.
pub(crate) fn get<E: VmEffects>(effects: &mut E, message: Message<'_>, out: &mut [u8]) -> Option<usize> {
    let entries = Entries::of(message)?;
    let mut at = REPLY_HEAD;
    for entry in entries {
        let access = match get_one(effects, entry) {
            Ok(access) => access,
            Err(err) => return wire::finish(out, message.hdr, Err(err), 0),
        };
        put(
            out,
            at,
            &PageAccessEntry {
                gpa: entry.gpa,
                access,
                pad: [0; 7],
            },
        )?;
        at = at.checked_add(size_of::<PageAccessEntry>())?;
    }
    wire::finish(out, message.hdr, Ok(()), at.checked_sub(REPLY_HEAD)?)
}

fn set_one<E: VmEffects>(effects: &mut E, expressible: u8, entry: PageAccessEntry) -> Result<(), KvmError> {
    if entry.pad != [0; 7] || entry.access & !(READ | WRITE | EXEC) != 0 {
        return Err(KvmError(EINVAL));
    }
    if !is_expressible(entry.access, expressible) {
        return Err(KvmError(EOPNOTSUPP));
    }
    effects.set_page_access(VIEW, gfn(entry), entry.access)
}

fn get_one<E: VmEffects>(effects: &mut E, entry: PageAccessEntry) -> Result<u8, KvmError> {
    if entry.pad != [0; 7] {
        return Err(KvmError(EINVAL));
    }
    effects.page_access(VIEW, gfn(entry))
}

fn gfn(entry: PageAccessEntry) -> u64 {
    entry.gpa >> GFN_SHIFT
}

/// Whether hardware with these bits of [`Features::access`] can do as it is told (P13). None can deny reads and let
/// writes pass.
fn is_expressible(access: u8, bits: u8) -> bool {
    let needed = [
        (READ, Features::READ_DENY),
        (WRITE, Features::WRITE_DENY),
        (EXEC, Features::EXEC_DENY),
    ];
    let can_deny = needed.iter().all(|(kind, bit)| access & kind != 0 || bits & bit != 0);
    match (access & READ != 0, access & WRITE != 0, access & EXEC != 0) {
        (true, ..) | (false, false, false) => can_deny,
        (false, true, _) => false,
        (false, false, true) => can_deny && bits & Features::EXEC_ONLY != 0,
    }
}

/// The entries of a request, as many as its head announces.
#[derive(Clone, Copy)]
struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// None for a message that is shorter than it says.
    fn of(message: Message<'a>) -> Option<Self> {
        let head: VmPageAccess = message.request();
        let bytes = usize::from(head.count).checked_mul(size_of::<PageAccessEntry>())?;
        let rest = message.skip(size_of::<VmPageAccess>()).payload.get(..bytes)?;
        Some(Self { rest })
    }
}

impl Iterator for Entries<'_> {
    type Item = PageAccessEntry;

    fn next(&mut self) -> Option<PageAccessEntry> {
        let (entry, rest) = PageAccessEntry::read_from_prefix(self.rest).ok()?;
        self.rest = rest;
        Some(entry)
    }
}
