// SPDX-License-Identifier: GPL-2.0-only
//! Bytes that are nothing. What messages do is compared with a reference in `tests/model`.

mod fake;

use fake::{FakeVcpu, FakeVm};
use kvmi_core::{KvmError, VcpuState, VcpuVerdict, VmState, VmVerdict, vcpu_message, vm_message};
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
        // An answer lies in the buffer.
        let fits = |out: &mut [u8], state: &mut VcpuState, bytes: &[u8]| {
            let answers = [
                match vm_message(&vm, &mut FakeVm::default(), bytes, out) {
                    VmVerdict::Answered(bytes) => bytes,
                    VmVerdict::Queue(_) | VmVerdict::Close => 0,
                },
                match vcpu_message(&vm, state, &mut FakeVcpu::default(), bytes, out).verdict {
                    VcpuVerdict::Answered(bytes) => bytes,
                    VcpuVerdict::Replied | VcpuVerdict::Close => 0,
                },
            ];
            answers.iter().all(|&bytes| bytes <= room)
        };
        prop_assert!(fits(&mut out, &mut state, &bytes));
        let mut sized = bytes.clone();
        if let (Some(size), Ok(announced)) = (sized.get_mut(2..4), u16::try_from(bytes.len().saturating_sub(8))) {
            size.copy_from_slice(&announced.to_ne_bytes());
            prop_assert!(fits(&mut out, &mut state, &sized));
        }
    }
}
