// SPDX-License-Identifier: GPL-2.0-only
//! Bytes that are nothing. What messages do is compared with a reference in `tests/model`.

mod fake;

use fake::{FakeVcpu, FakeVm};
use kvmi_core::{KvmError, VcpuState, VmState, vcpu_message, vm_message};
use kvmi_uapi::error::EINVAL;
use proptest::{collection::vec, prelude::*};

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes that need not be a message, in a buffer that need not be large enough.
    #[test]
    fn nothing_panics(bytes in vec(any::<u8>(), 0..80), room in 0usize..700) {
        let (vm, mut state) = (VmState::new(), VcpuState::new());
        vm.allow_command(1, -1).unwrap();
        let mut out = vec![0; room];
        let _ = kvmi_core::header_ok(&bytes);
        let _ = kvmi_core::is_event_reply(&bytes);
        let _ = kvmi_core::build_error_reply(&bytes, KvmError(EINVAL), &mut out);
        let _ = vm_message(&vm, &mut FakeVm::default(), &bytes, &mut out);
        let _ = vcpu_message(&vm, &mut state, &mut FakeVcpu::default(), &bytes, &mut out);
        let mut sized = bytes.clone();
        if let (Some(size), Ok(announced)) = (sized.get_mut(2..4), u16::try_from(bytes.len().saturating_sub(8))) {
            size.copy_from_slice(&announced.to_ne_bytes());
            let _ = vm_message(&vm, &mut FakeVm::default(), &sized, &mut out);
            let _ = vcpu_message(&vm, &mut state, &mut FakeVcpu::default(), &sized, &mut out);
        }
    }
}
