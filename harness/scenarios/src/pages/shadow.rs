// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM without nested paging: what it cannot do is refused.

use std::time::Duration;

use kvmi_guests::{Access, Op, layout};
use kvmi_uapi::error::EOPNOTSUPP;

use super::kinds::features;
use super::{ALL, R, W, X};
use crate::{Context, Failure, Scenario, check_eq, modules, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "pages::shadow_paging",
    "with kvm_intel.ept=0 or kvm_amd.npt=0 nothing can be expressed, and what is asked for is refused",
    shadow_paging,
)];

fn shadow_paging(context: &mut Context) -> Result<(), Failure> {
    context.stage("load without nested paging", Duration::from_secs(30));
    modules::without_nested_paging(context.backend)?;
    context.stage("start", Duration::from_secs(30));
    let (vm, mut wire) = context.hooked_vm("accesses", 1)?;
    context.stage("ask", Duration::from_secs(10));
    check_eq!(features(&mut wire)?, 0, "what can be expressed");
    let page = layout::SCRATCH;
    for access in [0, R, R | W, R | X, X, W] {
        check_eq!(
            wire.set_page_access(&[(page, access)])?,
            Err(EOPNOTSUPP),
            "VM_SET_PAGE_ACCESS {access}"
        );
    }
    check_eq!(
        wire.set_page_access(&[(page, ALL)])?,
        Ok(vec![]),
        "VM_SET_PAGE_ACCESS of all"
    );
    check_eq!(wire.page_access(&[page])?, [ALL], "VM_GET_PAGE_ACCESS");
    wire.control_event(0, kvmi_uapi::event::PF, true)?;
    let write = [Access::Write as u64, page, 1, 0];
    vm.carry_out(context, 0, Op::Access, write)?;
    wire.expect_no_event()?;
    vm.exit()
}
