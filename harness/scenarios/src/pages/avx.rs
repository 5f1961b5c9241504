// SPDX-License-Identifier: MIT OR Apache-2.0
//! AVX, of which KVM's instruction emulator knows nothing: 32 bytes are let through like 8.

use std::time::Duration;

use kvmi_guests::{Access, layout};
use kvmi_lab_control::Platform;
use kvmi_uapi::event::CONTINUE;

use super::{ALL, PAGE, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::avx",
        "VMOVDQU of 32 bytes to and from a page that denies it",
        avx,
    ),
    scenario(
        "pages::avx_crossing",
        "VMOVDQU of 32 bytes across two pages: told for each of them that is restricted",
        avx_crossing,
    ),
    scenario(
        "pages::avx_masked",
        "VMASKMOVPD across two pages, masked in the second: the first is told, the second is neither told nor touched",
        avx_masked,
    ),
];

const PLACE: u64 = layout::SCRATCH + 0x8_0000;
const SECOND: u64 = PLACE + PAGE;

/// The four quarters of 32 bytes.
fn quarters(watched: &Watched, gpa: u64) -> Result<[u64; 4], Failure> {
    let mut words = [0; 4];
    for (word, at) in words.iter_mut().zip((gpa..).step_by(8)) {
        *word = watched.word(at)?;
    }
    Ok(words)
}

fn avx(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let place = PLACE + 0x18;
    for (access, kept) in [(R | X, true), (0, false)] {
        context.stage(&format!("access {access}"), Duration::from_secs(10));
        watched.wire.restrict(&[(PLACE, access)])?;
        for value in [5, 6] {
            watched.told(context, (Access::StoreAvx, [place, value, 0]), &[(W, place)])?;
            check_eq!(quarters(&watched, place)?, [value; 4], "what was stored");
            let reads = [(R, place)];
            let told = if kept { &[] } else { &reads[..] };
            let loaded = watched.told(context, (Access::LoadAvx, [place, 0, 0]), told)?;
            check_eq!(loaded, value, "the highest quarter");
        }
    }
    watched.vm.exit()
}

fn avx_crossing(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    // Not at the middle of the 32 bytes, nor at that of a half or a quarter.
    for place in [SECOND - 4, SECOND - 20] {
        for (restricted, told) in [
            (vec![PLACE], vec![place]),
            (vec![SECOND], vec![SECOND]),
            (vec![PLACE, SECOND], vec![place, SECOND]),
        ] {
            context.stage(&format!("{place:#x} of {restricted:x?}"), Duration::from_secs(10));
            let set = |access| restricted.iter().map(|&gpa| (gpa, access)).collect::<Vec<_>>();
            for (round, (kind, access, what)) in [
                (W, R | X, Access::StoreAvx),
                (R, 0, Access::LoadAvx),
                (W, 0, Access::StoreAvx),
            ]
            .into_iter()
            .enumerate()
            {
                watched.wire.restrict(&set(access))?;
                let value = place + round as u64;
                if kind == R {
                    watched
                        .vm
                        .guest
                        .write(place, &[value; 4].map(u64::to_ne_bytes).concat())?;
                }
                let number = watched.begin(what, [place, value, 0])?;
                let wanted: Vec<_> = told.iter().map(|&gpa| (kind, gpa)).collect();
                watched.let_all_through(&wanted, |_| Ok(()))?;
                let result = watched.vm.finished(context, 0, number)?;
                watched.wire.expect_no_event()?;
                check_eq!(quarters(&watched, place)?, [value; 4], "the bytes across two pages");
                if kind == R {
                    check_eq!(result, value, "the highest quarter");
                }
            }
            watched.wire.restrict(&set(ALL))?;
        }
    }
    watched.vm.exit()
}

fn avx_masked(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let place = SECOND - 16;
    let kept = [0x77; 16];
    watched.vm.guest.write(SECOND, &kept)?;
    // QEMU reads what is masked, too.
    let loads = modules::platform()? != Platform::Tcg;
    for access in [R | X, 0] {
        context.stage(&format!("access {access}"), Duration::from_secs(10));
        for (restricted, is_told) in [(vec![SECOND], false), (vec![PLACE, SECOND], true)] {
            let set = |access| restricted.iter().map(|&gpa| (gpa, access)).collect::<Vec<_>>();
            watched.wire.restrict(&set(access))?;
            let value = 8 + u64::from(is_told);
            let told = if is_told { W } else { 0 };
            half(&mut watched, context, (Access::StoreHalf, [place, value, 0]), told)?;
            check_eq!(
                (watched.word(place)?, watched.word(place + 8)?),
                (value, value),
                "the half that is not masked"
            );
            if loads {
                let told = if is_told { R & !access } else { 0 };
                let loaded = half(&mut watched, context, (Access::LoadHalf, [place, 0, 0]), told)?;
                check_eq!(loaded, value, "the lowest quarter");
            }
            let mut bytes = [0; 16];
            watched.vm.guest.read(SECOND, &mut bytes)?;
            check_eq!(bytes, kept, "the half that is masked");
            watched.wire.restrict(&set(ALL))?;
        }
    }
    watched.vm.exit()
}

/// Half an access, of which this kind is told, if any, at whichever quarter the CPU begins with; its result.
fn half(watched: &mut Watched, context: &Context, access: (Access, [u64; 3]), kind: u8) -> Result<u64, Failure> {
    let number = watched.begin(access.0, access.1)?;
    if kind != 0 {
        let (event, data) = watched.pf()?;
        let place = access.1[0];
        check!(
            data.access == kind && (place..SECOND).contains(&data.gpa),
            "PF {data:x?} of {access:x?}"
        );
        watched.wire.reply(&event, CONTINUE)?;
    }
    let result = watched.vm.finished(context, 0, number)?;
    watched.wire.expect_no_event()?;
    Ok(result)
}
