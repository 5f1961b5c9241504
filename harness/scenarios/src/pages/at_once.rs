// SPDX-License-Identifier: MIT OR Apache-2.0
//! One instruction that needs many restricted pages, all at once.

use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_uapi::event::{CONTINUE, PF, Pf};

use super::{ALL, PAGE, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "pages::at_once",
    "CALL far that needs 33 restricted pages, most of them page tables: each of its own accesses is told once, and it ends",
    at_once,
)];

const PRESENT_WRITABLE: u64 = 3;
/// What one entry of the root maps.
const REGION: u64 = 1 << 39;
/// Bytes of an entry.
const ENTRY: u64 = 8;
const LAST_ENTRY: u64 = PAGE - ENTRY;
/// Where the addresses for the guest lie, in a page that nothing denies.
const FOUR: u64 = layout::SCRATCH;
const PLACE: u64 = layout::SCRATCH + 0x10_0000;

/// Two pages side by side in linear addresses that share no page table but the root.
struct Pair {
    /// Linear address of the second.
    middle: u64,
    first: u64,
    second: u64,
    tables: Vec<u64>,
}

impl Pair {
    /// The pair with this number, mapped.
    fn map(watched: &Watched, number: u64) -> Result<Self, Failure> {
        let middle = (2 * number + 2) * REGION;
        let pages: Vec<_> = (0..8).map(|i| PLACE + (8 * number + i) * PAGE).collect();
        for (half, last) in [(&pages[..4], true), (&pages[4..], false)] {
            let offset = if last { LAST_ENTRY } else { 0 };
            let slot = middle / REGION - u64::from(last);
            let mut entry = layout::ROOT + ENTRY * slot;
            for &page in half {
                watched
                    .vm
                    .guest
                    .write(entry, &(page | PRESENT_WRITABLE).to_ne_bytes())?;
                entry = page + offset;
            }
        }
        Ok(Self {
            middle,
            first: pages[3],
            second: pages[7],
            tables: [&pages[..3], &pages[4..7]].concat(),
        })
    }

    /// Writes bytes of which this many lie in the first page.
    fn write(&self, watched: &Watched, bytes: &[u8], before: usize) -> Result<(), Failure> {
        watched
            .vm
            .guest
            .write(self.first + PAGE - before as u64, &bytes[..before])?;
        watched.vm.guest.write(self.second, &bytes[before..])
    }
}

fn at_once(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    context.stage("prepare", Duration::from_secs(10));
    let pairs = (0..4).map(|n| Pair::map(&watched, n)).collect::<Result<Vec<_>, _>>()?;
    let [code, target, stack, gdt] = &pairs[..] else {
        return Err(Failure::new("four pairs"));
    };
    // call far [rax], with an address of 64 bits: of a shorter one QEMU looks at half of RSP alone.
    code.write(&watched, &[0x48, 0xff, 0x18], 1)?;
    // The descriptor of the code segment, the second of the table, lies across the pages.
    let mut table = [0; 5 * 8];
    watched.vm.guest.read(layout::GDT, &mut table)?;
    gdt.write(&watched, &table, 12)?;
    let limit = (table.len() as u16 - 1).to_le_bytes();
    let addresses = [code.middle - 1, target.middle - 3, stack.middle + 8].map(u64::to_le_bytes);
    let base = (gdt.middle - 12).to_le_bytes();
    watched
        .vm
        .guest
        .write(FOUR, &[&addresses.concat()[..], &limit, &base].concat())?;

    context.stage("call", Duration::from_secs(60));
    let mut restricted = vec![(layout::ROOT, R | X)];
    for (pair, access) in [(code, R | W), (target, 0), (stack, R | X), (gdt, 0)] {
        restricted.extend([(pair.first, access), (pair.second, access)]);
        restricted.extend(pair.tables.iter().map(|&table| (table, R | X)));
    }
    check_eq!(restricted.len(), 33, "restricted pages");
    watched.wire.restrict(&restricted)?;
    let number = watched.begin(Access::CallFar, [FOUR, 0, 0])?;
    let mut wanted = vec![
        (X, code.first + PAGE - 1),
        (X, code.second),
        (R, target.first + PAGE - 3),
        (R, target.second),
        (R, gdt.first + PAGE - 4),
        (R, gdt.second),
        (W, stack.first + PAGE - 8),
        (W, stack.second),
    ];
    // The guest writes the target before, in three accesses to restricted pages.
    for _ in 0..3 + wanted.len() {
        let event = watched.wire.expect_event(PF, 0)?;
        let data = event.data::<Pf>()?;
        if event.arch.regs.rip == code.middle - 1 {
            let at = wanted.iter().position(|&told| told == (data.access, data.gpa));
            let Some(at) = at else {
                return Err(Failure::new(format!("PF {data:x?}, expected one of {wanted:x?}")));
            };
            wanted.remove(at);
        } else {
            let is_target = [target.first, target.second].contains(&(data.gpa & !(PAGE - 1)));
            check!(data.access == W && is_target, "PF {data:x?} beside the call");
        }
        watched.wire.reply(&event, CONTINUE)?;
    }
    watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    check_eq!(wanted, [], "what was not told");
    let lifted: Vec<_> = restricted.iter().map(|&(gpa, _)| (gpa, ALL)).collect();
    watched.wire.restrict(&lifted)?;
    watched.vm.exit()
}
