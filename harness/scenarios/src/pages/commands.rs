// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM_SET_PAGE_ACCESS and VM_GET_PAGE_ACCESS: answers and each error.

use std::time::Duration;

use kvmi_guests::layout;
use kvmi_uapi::error::{EINVAL, EOPNOTSUPP};
use kvmi_uapi::msg;

use super::kinds::{features, restrictions};
use super::{ALL, PAGE, R, W, X, request};
use crate::commands::padding_is_checked;
use crate::{Context, Failure, Scenario, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::set",
        "VM_SET_PAGE_ACCESS: what can be expressed is read back, the rest is refused and changes nothing",
        set,
    ),
    scenario(
        "pages::get",
        "VM_GET_PAGE_ACCESS: what is in force, in the order of the request",
        get,
    ),
];

const PLACE: u64 = layout::SCRATCH;

/// Pages in no memory slot: behind RAM, behind what the CPU can address, the last of all.
const NOWHERE: [u64; 4] = [layout::RAM_BYTES, 1 << 40, 1 << 52, !0xfff];

fn set(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    let expressible = restrictions(features(&mut wire)?);
    context.stage("each access", Duration::from_secs(10));
    for access in 0..=ALL {
        let wanted = if access == ALL || expressible.contains(&access) {
            (Ok(vec![]), access)
        } else {
            (Err(EOPNOTSUPP), ALL)
        };
        let answer = wire.set_page_access(&[(PLACE, access)])?;
        let now = wire.page_access(&[PLACE])?[0];
        check_eq!(
            (answer, now),
            wanted,
            "VM_SET_PAGE_ACCESS {access}, and what is in force"
        );
        // What is refused leaves an earlier restriction as it is.
        wire.restrict(&[(PLACE, R)])?;
        if !expressible.contains(&access) && access != ALL {
            check_eq!(wire.set_page_access(&[(PLACE, access)])?, Err(EOPNOTSUPP), "again");
            check_eq!(wire.page_access(&[PLACE])?, [R], "an earlier restriction");
        }
        wire.restrict(&[(PLACE, ALL)])?;
    }
    context.stage("an offset is of no matter", Duration::from_secs(10));
    wire.restrict(&[(PLACE + 0xabc, R | X)])?;
    check_eq!(wire.page_access(&[PLACE, PLACE + 0xfff])?, [R | X, R | X], "access");
    context.stage("errors of an entry", Duration::from_secs(10));
    for gpa in NOWHERE {
        for access in [R, ALL] {
            check_eq!(
                wire.set_page_access(&[(gpa, access)])?,
                Err(EINVAL),
                "a page at {gpa:#x}"
            );
        }
    }
    for access in [8, 0x10, 0x80, 0xff, ALL | 8] {
        check_eq!(
            wire.set_page_access(&[(PLACE, access)])?,
            Err(EINVAL),
            "access {access:#x}"
        );
    }
    let one = request(&[(PLACE, R | W)]);
    padding_is_checked(&mut wire, msg::VM_SET_PAGE_ACCESS, &one, 2..8)?;
    padding_is_checked(&mut wire, msg::VM_SET_PAGE_ACCESS, &one, 17..24)?;
    check_eq!(wire.page_access(&[PLACE])?, [R | X], "access after what was refused");
    context.stage(
        "all entries are tried, the first error is told",
        Duration::from_secs(10),
    );
    let mixed = [
        (PLACE, R),
        (PLACE + PAGE, W),
        (layout::RAM_BYTES, R),
        (PLACE + 2 * PAGE, 0),
        (PLACE + 3 * PAGE, 9),
        (PLACE + 4 * PAGE, R | W),
    ];
    check_eq!(wire.set_page_access(&mixed)?, Err(EOPNOTSUPP), "the first error");
    check_eq!(
        wire.set_page_access(&mixed[2..])?,
        Err(EINVAL),
        "the first error of the rest"
    );
    check_eq!(
        wire.page_access(&[0, 1, 2, 3, 4].map(|i| PLACE + i * PAGE))?,
        [R, ALL, 0, ALL, R | W],
        "access after both"
    );
    check_eq!(wire.set_page_access(&[])?, Ok(vec![]), "no entries");
    vm.exit()
}

fn get(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    context.stage("answers", Duration::from_secs(10));
    wire.restrict(&[(PLACE, R), (PLACE + PAGE, R | W)])?;
    check_eq!(
        wire.page_access(&[PLACE + PAGE, PLACE, PLACE, PLACE + 2 * PAGE])?,
        [R | W, R, R, ALL],
        "access in the order of the request"
    );
    check_eq!(wire.page_access(&[])?, Vec::<u8>::new(), "no entries");
    // The access byte is not looked at.
    let answer = wire.vm(msg::VM_GET_PAGE_ACCESS, &request(&[(PLACE, 0xff)])[..])?;
    check_eq!(
        answer.map(|data| data[size_of::<u64>()]),
        Ok(R),
        "VM_GET_PAGE_ACCESS with an access byte"
    );
    vm.exit()
}
