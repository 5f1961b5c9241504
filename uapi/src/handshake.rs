// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! What VMM and tool say to each other on the socket before the VMM passes it to HOOK. The kernel never sees it.

use crate::layout::structs;

/// A byte of text.
pub type Char = u8;

structs! {
    /// First words of the VMM, 104 bytes; older VMMs send 96 (no `max_gpa`). Sizes make it extensible.
    pub struct VmmHandshake = kvmi_vmm_handshake, 104 {
        /// Bytes that the VMM sends, this field included.
        pub struct_size: u32,
        /// Names the VM.
        pub uuid: [u8; 16],
        /// Zero.
        pub padding: u32,
        /// When the VM started, in seconds since the epoch.
        pub start_time: i64,
        /// Name of the VM, padded with NUL.
        pub name: [Char; 64],
        /// Highest guest physical address, in bytes; 0 when unknown.
        pub max_gpa: u64,
    }

    /// Answer of the tool, 24 bytes.
    pub struct ToolHandshake = kvmi_tool_handshake, 24 {
        /// Bytes that the tool sends, this field included.
        pub struct_size: u32,
        /// SHA-1 of the shared key, zero without one.
        pub cookie_hash: [u8; 20],
    }
}
