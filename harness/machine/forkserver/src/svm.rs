// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mends what Bochs 3.0 does otherwise than AMD's CPUs where it enters and leaves a guest. Each function here is called where Bochs calls one
//! of its own, and calls that in turn; most of them return by a long jump over both, so none of them holds anything meanwhile.

use std::env;
use std::ffi::{CStr, c_uint, c_void};
use std::mem::transmute;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use kvmi_lab_preload::calls::Redirect;

use crate::BOCHS;
use crate::cpu::Number;

/// Names the variable that is set where Bochs's CPU has SVM.
const SVM: &str = "KVMI_LAB_SVM";

/// `bool BX_CPU_C::SvmEnterLoadCheckGuestState()`
const ENTER: &CStr = c"_ZN8BX_CPU_C27SvmEnterLoadCheckGuestStateEv";
/// `bool BX_CPU_C::SvmInjectEvents()`
const INJECT: &CStr = c"_ZN8BX_CPU_C15SvmInjectEventsEv";
/// `void BX_CPU_C::SvmInterceptException(unsigned type, unsigned vector, Bit16u error, bool has_error, Bit64u info)`
const INTERCEPT: &CStr = c"_ZN8BX_CPU_C21SvmInterceptExceptionEjjtbm";
/// `void BX_CPU_C::interrupt(Bit8u vector, unsigned type, bool has_error, Bit16u error)`
const DELIVER: &CStr = c"_ZN8BX_CPU_C9interruptEhjbt";
/// `bool BX_CPU_C::SetCR0(bxInstruction_c *, bx_address)`
const SET_CR0: &CStr = c"_ZN8BX_CPU_C6SetCR0EP15bxInstruction_cm";
/// `void BX_CPU_C::SvmExitLoadHostState(SVM_HOST_STATE *)`
const LEAVE: &CStr = c"_ZN8BX_CPU_C20SvmExitLoadHostStateEP14SVM_HOST_STATE";
/// `void BX_CPU_C::setEFlags(Bit32u)`
const SET_FLAGS: &CStr = c"_ZN8BX_CPU_C9setEFlagsEj";
/// `bx_hostpageaddr_t BX_CPU_C::getHostMemAddr(bx_phy_address, unsigned access)`
const HOST_ADDRESS: &CStr = c"_ZN8BX_CPU_C14getHostMemAddrEmj";

type OfCpu = unsafe extern "C" fn(*mut c_void) -> bool;
type Intercept = unsafe extern "C" fn(*mut c_void, c_uint, c_uint, u16, bool, u64);
type Deliver = unsafe extern "C" fn(*mut c_void, u8, c_uint, bool, u16);
type SetCr0 = unsafe extern "C" fn(*mut c_void, *mut c_void, u64) -> bool;
type Leave = unsafe extern "C" fn(*mut c_void, *mut c_void);
type SetFlags = unsafe extern "C" fn(*mut c_void, u32);
type HostAddress = unsafe extern "C" fn(*mut c_void, u64, c_uint) -> *const u8;

/// An access that reads, for `HOST_ADDRESS`.
const READ: c_uint = 0;

/// Where the VMCB has what is read here, by AMD's manual.
mod vmcb {
    pub(super) const EVENT: usize = 0x0a8;
    pub(super) const NEXT_RIP: usize = 0x0c8;
    pub(super) const RFLAGS: usize = 0x570;
    pub(super) const CR2: usize = 0x640;
}

/// An event's type in the VMCB, and what else it says.
const EVENT_VALID: u64 = 1 << 31;
const EVENT_EXCEPTION: u64 = 3;
const EVENT_SOFTWARE: u64 = 4;

/// RFLAGS.VM, and RFLAGS as it is when nothing is set.
const FLAGS_VM: u64 = 1 << 17;
const NO_FLAGS: u32 = 2;

const DB: c_uint = 1;
const BP: u64 = 3;
const OF: u64 = 4;

/// The bits of DR6 that a #DB sets, and those that it clears before.
const DR6_SET: u64 = 0xe00f;
const DR6_CLEARED: u64 = 0x900f;
/// A debug register was to be accessed, and an instruction was stepped. Where it is the first, the instruction has not been executed.
const DR6_BD: u64 = 1 << 13;
const DR6_BS: u64 = 1 << 14;

/// The bit by which a busy TSS of 32 bits differs from one of 16.
const TSS_32_BITS: u64 = 8;
const NO_TYPE: u64 = u64::MAX;

/// What of Bochs is used.
struct Bochs {
    enter: OfCpu,
    inject: OfCpu,
    intercept: Intercept,
    deliver: Deliver,
    set_cr0: SetCr0,
    leave: Leave,
    set_flags: SetFlags,
    host_address: HostAddress,
    in_guest: Number,
    /// The VMCB's physical address.
    vmcb: Number,
    intercepted_exceptions: Number,
    /// What is being delivered, and its error code, for a #VMEXIT meanwhile.
    delivered: Number,
    delivered_error: Number,
    rip: Number,
    cr2: Number,
    dr6: Number,
    /// What the next #DB will add to DR6.
    debug_trap: Number,
    tss_type: Number,
}

/// The TSS type that [`set_cr0`] hides.
static HIDDEN: AtomicU64 = AtomicU64::new(NO_TYPE);

/// Runs when the program is loaded, before its own main function.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    if env::var_os(SVM).is_none() {
        return;
    }
    let to = |function, calls, by| Redirect { function, calls, by };
    let all = [
        to(ENTER, 1, enter as *const c_void),
        to(INJECT, 1, inject as *const c_void),
        to(INTERCEPT, 4, intercept as *const c_void),
        to(DELIVER, 11, deliver as *const c_void),
        to(SET_CR0, 3, set_cr0 as *const c_void),
        to(LEAVE, 1, leave as *const c_void),
    ];
    // SAFETY: these take and return what Bochs's do; no other thread runs yet.
    if let Err(why) = unsafe { BOCHS.redirect(&all) } {
        BOCHS.give_up(&why);
    }
}

fn bochs() -> &'static Bochs {
    static FOUND: OnceLock<Bochs> = OnceLock::new();
    FOUND.get_or_init(|| find().unwrap_or_else(|why| BOCHS.give_up(&why)))
}

fn find() -> Result<Bochs, String> {
    let of_cpu = |function| {
        // SAFETY: methods of this type in Bochs 3.0.
        BOCHS
            .exported(function)
            .map(|f| unsafe { transmute::<*mut c_void, OfCpu>(f) })
    };
    let [intercept, deliver, set_cr0, leave, set_flags, host_address] =
        [INTERCEPT, DELIVER, SET_CR0, LEAVE, SET_FLAGS, HOST_ADDRESS].map(|method| BOCHS.exported(method));
    // SAFETY: methods of these types in Bochs 3.0.
    let (intercept, deliver, set_cr0, leave, set_flags, host_address) = unsafe {
        (
            transmute::<*mut c_void, Intercept>(intercept?),
            transmute::<*mut c_void, Deliver>(deliver?),
            transmute::<*mut c_void, SetCr0>(set_cr0?),
            transmute::<*mut c_void, Leave>(leave?),
            transmute::<*mut c_void, SetFlags>(set_flags?),
            transmute::<*mut c_void, HostAddress>(host_address?),
        )
    };
    Ok(Bochs {
        enter: of_cpu(ENTER)?,
        inject: of_cpu(INJECT)?,
        intercept,
        deliver,
        set_cr0,
        leave,
        set_flags,
        host_address,
        in_guest: Number::named(c"bochs.cpu0.SVM.in_svm_guest")?,
        vmcb: Number::named(c"bochs.cpu0.SVM.vmcbptr")?,
        intercepted_exceptions: Number::named(c"bochs.cpu0.SVM.VMCB_CTRLS.exceptions_intercept")?,
        delivered: Number::named(c"bochs.cpu0.SVM.VMCB_CTRLS.exitintinfo")?,
        delivered_error: Number::named(c"bochs.cpu0.SVM.VMCB_CTRLS.exitintinfo_errcode")?,
        rip: Number::named(c"bochs.cpu0.RIP")?,
        cr2: Number::named(c"bochs.cpu0.CR2")?,
        dr6: Number::named(c"bochs.cpu0.DR6")?,
        debug_trap: Number::named(c"bochs.cpu0.debug_trap")?,
        tss_type: Number::named(c"bochs.cpu0.TR.type")?,
    })
}

impl Bochs {
    fn in_guest(&self) -> bool {
        self.in_guest.get() != 0
    }

    /// What the current VMCB has in a place.
    fn vmcb(&self, cpu: *mut c_void, place: usize) -> u64 {
        // SAFETY: the method of Bochs's CPU; it returns null or where a page of L1's memory is.
        let page = unsafe { (self.host_address)(cpu, self.vmcb.get(), READ) };
        if page.is_null() {
            BOCHS.give_up("a VMCB is not in memory");
        }
        // SAFETY: the places are words within that page.
        unsafe { page.add(place).cast::<u64>().read() }
    }

    fn show_tss_type(&self) {
        let hidden = HIDDEN.swap(NO_TYPE, Ordering::Relaxed);
        if hidden != NO_TYPE {
            self.tss_type.set(hidden);
        }
    }
}

/// VMRUN loads what the guest's CPU held. Bochs leaves CR2 out, which then is the host's. And it looks at the guest's IF before it is in the guest,
/// so that a clear one keeps the host's interrupts from ending the guest's run.
unsafe extern "C" fn enter(cpu: *mut c_void) -> bool {
    let bochs = bochs();
    bochs.in_guest.set(1);
    // SAFETY: the caller's argument, passed on.
    let in_order = unsafe { (bochs.enter)(cpu) };
    if in_order {
        bochs.cr2.set(bochs.vmcb(cpu, vmcb::CR2));
    }
    in_order
}

/// VMRUN delivers the event that the VMCB has. One that belongs to an instruction returns behind that: to the next RIP that the VMCB names.
/// Bochs lets it return to RIP. Should the delivery fault it is RIP that counts, and that is kept elsewhere.
unsafe extern "C" fn inject(cpu: *mut c_void) -> bool {
    let bochs = bochs();
    let event = bochs.vmcb(cpu, vmcb::EVENT) & 0xffff_ffff;
    let (kind, vector) = (event >> 8 & 7, event & 0xff);
    let of_instruction = kind == EVENT_SOFTWARE || kind == EVENT_EXCEPTION && [BP, OF].contains(&vector);
    if event & EVENT_VALID != 0 && of_instruction {
        bochs.rip.set(bochs.vmcb(cpu, vmcb::NEXT_RIP));
    }
    // SAFETY: the caller's argument, passed on.
    unsafe { (bochs.inject)(cpu) }
}

/// An exception, which ends the guest's run if it is intercepted. DR6 then says why a #DB came. Bochs writes it for #DB that are not intercepted
/// alone.
unsafe extern "C" fn intercept(cpu: *mut c_void, kind: c_uint, vector: c_uint, error: u16, has_error: bool, info: u64) {
    let bochs = bochs();
    if vector == DB && bochs.in_guest() && bochs.intercepted_exceptions.get() & 1 << DB != 0 {
        let mut why = bochs.debug_trap.get() & DR6_SET;
        // Bochs notes the step's trap before the instruction is executed.
        if why & DR6_BD != 0 {
            why &= !DR6_BS;
        }
        bochs.dr6.set(bochs.dr6.get() & !DR6_CLEARED | why);
    }
    // SAFETY: the caller's arguments, passed on.
    unsafe { (bochs.intercept)(cpu, kind, vector, error, has_error, info) }
}

/// An event goes through the IDT; a #VMEXIT meanwhile says which. Bochs has that for exceptions alone, and else names an earlier one.
unsafe extern "C" fn deliver(cpu: *mut c_void, vector: u8, kind: c_uint, has_error: bool, error: u16) {
    let bochs = bochs();
    if u64::from(kind) == EVENT_SOFTWARE && bochs.in_guest() {
        bochs.delivered.set(EVENT_SOFTWARE << 8 | u64::from(vector));
        bochs.delivered_error.set(0);
    }
    // SAFETY: the caller's arguments, passed on.
    unsafe { (bochs.deliver)(cpu, vector, kind, has_error, error) }
}

/// A write of CR0. Bochs lets none switch long mode on while TR holds a TSS of 16 bits; Intel's CPUs do so, AMD's do not ask, and KVM gives such
/// a TSS to guests on AMD that come from a reset.
unsafe extern "C" fn set_cr0(cpu: *mut c_void, instruction: *mut c_void, value: u64) -> bool {
    let bochs = bochs();
    let tss_type = bochs.tss_type.get();
    if bochs.in_guest() && tss_type & TSS_32_BITS == 0 {
        HIDDEN.store(tss_type, Ordering::Relaxed);
        bochs.tss_type.set(tss_type | TSS_32_BITS);
    }
    // SAFETY: the caller's arguments, passed on. Where it does not return, `leave` runs.
    let in_order = unsafe { (bochs.set_cr0)(cpu, instruction, value) };
    bochs.show_tss_type();
    in_order
}

/// #VMEXIT loads what the host's CPU held. That the guest has a trap to come, of its single-step flag, is not the host's concern; Bochs would let
/// it come there. And Bochs loads EFER before RFLAGS, and ends when it then finds itself in virtual-8086 mode and long mode at once.
unsafe extern "C" fn leave(cpu: *mut c_void, host: *mut c_void) {
    let bochs = bochs();
    bochs.show_tss_type();
    bochs.debug_trap.set(0);
    // The guest's state is in the VMCB already.
    if bochs.vmcb(cpu, vmcb::RFLAGS) & FLAGS_VM != 0 {
        // SAFETY: the CPU, and flags of which none but the reserved one is set.
        unsafe { (bochs.set_flags)(cpu, NO_FLAGS) };
    }
    // SAFETY: the caller's arguments, passed on.
    unsafe { (bochs.leave)(cpu, host) }
}
