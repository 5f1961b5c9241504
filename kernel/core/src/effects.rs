// SPDX-License-Identifier: GPL-2.0-only
//! What the core asks of KVM.

use kvmi_uapi::VcpuRunState;

/// Bytes of struct kvm_regs.
pub(crate) const REGS_BYTES: usize = 144;
/// Bytes of struct kvm_sregs.
pub(crate) const SREGS_BYTES: usize = 312;
/// Bytes of the fixed part of struct kvm_xsave.
pub(crate) const XSAVE_BYTES: usize = 4096;
/// Bytes of the x86 part of a vCPU event.
pub(crate) const ARCH_BYTES: usize = 536;

/// A value of [`kvmi_uapi::error`]; a reply carries it negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmError(pub i32);

/// What of a vCPU says which registers it can have, and how its page tables are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// The page directory pointers that the CPU has loaded, where PAE paging is on and `has_pdptrs` says so.
    pub pdptrs: [u64; 4],
    /// In a guest of the guest's behind nested paging: the tables of its hypervisor, as EPTP or nCR3 has them.
    pub nested_root: u64,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// 1 in 64-bit mode.
    pub long_code: u8,
    /// 1: an external interrupt is to be delivered when the vCPU enters the guest next, which needs RFLAGS.IF.
    pub delivers_interrupt: u8,
    /// 1: `pdptrs` are those of the CPU; 0: it reads them in memory, where CR3 says.
    pub has_pdptrs: u8,
    /// Levels of the tables at `nested_root`: 0 (there are none), or 2 to 5.
    pub nested_levels: u8,
    /// 1: they are extended page tables.
    pub nested_ept: u8,
    /// 1: tables of two levels have pages of 4 MiB.
    pub nested_pse: u8,
    /// Nothing.
    pub pad: u8,
}

/// What the receive thread can do to the VM.
pub trait VmEffects {
    /// vCPUs online now.
    fn vcpu_count(&mut self) -> u32;

    /// Whether a vCPU (of an index below the count) takes commands; EAGAIN while it is not initialised.
    ///
    /// # Errors
    /// EAGAIN.
    fn vcpu_ready(&mut self, vcpu: u16) -> Result<(), KvmError>;

    /// Reads 1 to 4096 bytes of one page of guest memory, at a gpa.
    ///
    /// # Errors
    /// ENOENT.
    fn read_physical(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError>;

    /// Writes 1 to 4096 bytes into one page of guest memory, at a gpa, and marks it dirty (P6).
    ///
    /// # Errors
    /// ENOENT; EPERM for a read-only slot.
    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), KvmError>;

    /// Asks a vCPU (of an index below the count) for a PAUSE event; with `wait`, returns after it left guest mode.
    ///
    /// # Errors
    /// EBUSY when too many requests are pending.
    fn pause_vcpu(&mut self, vcpu: u16, wait: bool) -> Result<(), KvmError>;

    /// Sets what the guest may do with a page of a view: bits of [`kvmi_uapi::PageAccessEntry`] that can be expressed. In
    /// force only after [`Self::page_access_set`].
    ///
    /// # Errors
    /// EINVAL where there is no memory slot and no restriction; ENOMEM.
    fn set_page_access(&mut self, view: u16, gfn: u64, access: u8) -> Result<(), KvmError>;

    /// What was set is in force on every vCPU when this returns (P4).
    fn page_access_set(&mut self);

    /// What the guest may do with a page of a view.
    ///
    /// # Errors
    /// EINVAL where there is no memory slot and no restriction.
    fn page_access(&mut self, view: u16, gfn: u64) -> Result<u8, KvmError>;

    /// What a vCPU (of an index below the count) is doing.
    fn vcpu_state(&mut self, vcpu: u16) -> VcpuRunState;

    /// Lets vCPUs go that HOOK keeps stopped.
    fn release(&mut self);

    /// Which page access restrictions can be expressed: bits of [`kvmi_uapi::Features`].
    fn access_bits(&mut self) -> u8;

    /// Whether the CPU can be stepped.
    fn singlestep(&mut self) -> bool;
}

/// What a vCPU thread can do to its vCPU.
///
/// Implemented three times: by `kernel/module`, and by the tests of this crate and of the client library. No method has a
/// default, so each of them has all.
pub trait VcpuEffects {
    /// The vCPU's index.
    fn index(&mut self) -> u16;

    /// Guest TSC frequency in Hz; 0 when the CPU cannot control it.
    fn tsc_hz(&mut self) -> u64;

    /// Operand mode in bytes: 2, 4 or 8.
    fn mode(&mut self) -> u8;

    /// Fills in [`kvmi_uapi::VcpuEventArch`].
    fn arch(&mut self, out: &mut [u8; ARCH_BYTES]);

    /// Fills in [`kvmi_uapi::Regs`].
    fn regs(&mut self, out: &mut [u8; REGS_BYTES]);

    /// Fills in [`kvmi_uapi::Sregs`].
    fn sregs(&mut self, out: &mut [u8; SREGS_BYTES]);

    /// Reads an MSR.
    ///
    /// # Errors
    /// EINVAL for one that the vCPU does not have.
    fn msr(&mut self, index: u32) -> Result<u64, KvmError>;

    /// EAX, EBX, ECX, EDX of a leaf of the vCPU's CPUID table.
    ///
    /// # Errors
    /// ENOENT for one that is not there.
    fn cpuid(&mut self, function: u32, index: u32) -> Result<[u32; 4], KvmError>;

    /// XCR0.
    fn xcr0(&mut self) -> u64;

    /// Fills in [`kvmi_uapi::Xsave`].
    ///
    /// # Errors
    /// EOPNOTSUPP when the vCPU's extended state may be larger.
    fn xsave(&mut self, out: &mut [u8; XSAVE_BYTES]) -> Result<(), KvmError>;

    /// Takes the extended state over.
    ///
    /// # Errors
    /// EINVAL for what KVM does not accept, EOPNOTSUPP as [`Self::xsave`].
    fn set_xsave(&mut self, state: &[u8; XSAVE_BYTES]) -> Result<(), KvmError>;

    /// What says how page tables are read, and which registers the vCPU can have.
    fn control(&mut self) -> Control;

    /// Reads 4 or 8 bytes of a page table of the introspected guest.
    ///
    /// # Errors
    /// ENOENT where there is no memory.
    fn read_table(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError>;

    /// Whether the VMM lets the guest write this MSR.
    ///
    /// # Errors
    /// EPERM when its filter denies that.
    fn msr_write_allowed(&mut self, index: u32) -> Result<(), KvmError>;

    /// Whether the CPU can tell of instructions about descriptor table registers.
    ///
    /// # Errors
    /// EOPNOTSUPP.
    fn descriptor_exits(&mut self) -> Result<(), KvmError>;

    /// Whether nothing else is on its way into the guest.
    ///
    /// # Errors
    /// EBUSY when an exception, an interrupt or an NMI is.
    fn injection_free(&mut self) -> Result<(), KvmError>;

    /// Whether #BP is free to be intercepted.
    ///
    /// # Errors
    /// EBUSY when guest debugging by the VMM owns it.
    fn breakpoint_free(&mut self) -> Result<(), KvmError>;

    /// Whether the CPU can be stepped.
    fn can_singlestep(&mut self) -> bool;

    /// Whether the vCPU is free to be stepped.
    ///
    /// # Errors
    /// EBUSY when guest debugging by the VMM steps it.
    fn singlestep_free(&mut self) -> Result<(), KvmError>;
}
