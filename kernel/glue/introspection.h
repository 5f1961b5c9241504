/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What KVM's own code calls for introspection.  Everything is behind a static
 * key that is off until the first HOOK, and behind vcpu->arch.introspection.vi.
 */
#ifndef KVM_INTROSPECTION_H
#define KVM_INTROSPECTION_H

#include <linux/jump_label.h>
#include <linux/kvm_host.h>
#include <linux/version.h>

#include "kvmi.h"

/* vcpu->arch.introspection.intercepts: the tool's share of what the hardware intercepts. */
#define KVM_INTROSPECT_BP	BIT(0)
#define KVM_INTROSPECT_CR0	BIT(1)
#define KVM_INTROSPECT_CR3	BIT(2)
#define KVM_INTROSPECT_MSR	BIT(3)	/* which: kvm_introspection_watches_msr() */
#define KVM_INTROSPECT_DESC	BIT(4)

/* kvm_set_cr0() and friends: neither done nor refused, the instruction is to be run again. */
#define KVM_CR_DEFERRED	0x100

/* What becomes of the guest's own WRMSR. */
enum kvm_introspection_wrmsr {
	KVM_WRMSR_WRITE,	/* it is done, with the value that is there now */
	KVM_WRMSR_DEFERRED,	/* neither done nor refused, the instruction is to be run again */
	KVM_WRMSR_VETOED,	/* it is over, and wrote nothing */
};

DECLARE_STATIC_KEY_FALSE(kvm_introspection_hooked);

/* Lifecycle (session.c) */
bool kvm_is_introspection_enabled(void);
void kvm_introspection_vm_init(struct kvm *kvm);
void kvm_introspection_vm_destroy(struct kvm *kvm);
void kvm_introspection_vmm_exit(struct kvm *kvm);
int kvm_introspection_vcpu_create(struct kvm_vcpu *vcpu);
void kvm_introspection_vcpu_destroy(struct kvm_vcpu *vcpu);

/* KVM's own, which the ioctls of the VMM call too. */
void __get_regs(struct kvm_vcpu *vcpu, struct kvm_regs *regs);
void __set_regs(struct kvm_vcpu *vcpu, struct kvm_regs *regs);
void __get_sregs(struct kvm_vcpu *vcpu, struct kvm_sregs *sregs);

/* The run loop (vcpu.c) */
int __kvm_introspection_work(struct kvm_vcpu *vcpu);
void kvm_introspection_recalc_intercepts(struct kvm_vcpu *vcpu);

/* Steps (step.c) */
void __kvm_introspection_step_end(struct kvm_vcpu *vcpu);
void __kvm_introspection_instruction_ends(struct kvm_vcpu *vcpu);
bool __kvm_introspection_holds_interrupts(struct kvm_vcpu *vcpu);

/* Page access (access.c, let_through.c) */
bool kvm_introspection_tells_walks(void);
bool kvm_introspection_has_execute_only(void);
int __kvm_introspection_max_level(struct kvm *kvm, gfn_t gfn, int level);
unsigned int __kvm_introspection_pte_access(struct kvm_vcpu *vcpu, union kvm_mmu_page_role role,
					    gfn_t gfn, unsigned int access);
bool __kvm_introspection_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code);
bool __kvm_introspection_emulates(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva, bool write);
bool __kvm_introspection_emulates_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				       bool write);
bool __kvm_introspection_handles_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				      bool write);
bool __kvm_introspection_handles_phys(struct kvm_vcpu *vcpu, gpa_t gpa, bool write);
void __kvm_introspection_round_ends(struct kvm_vcpu *vcpu);

/* Event sites (sites.c) */
bool __kvm_introspection_hypercall(struct kvm_vcpu *vcpu, int *r);
bool __kvm_introspection_defer_cr(struct kvm_vcpu *vcpu, int cr,
				  unsigned long old, unsigned long new);
void __kvm_introspection_void_event(struct kvm_vcpu *vcpu);
void __kvm_introspection_vmm_writes(struct kvm_vcpu *vcpu);
bool kvm_introspection_breakpoint(struct kvm_vcpu *vcpu, u8 insn_len);
bool kvm_introspection_owns_debugging(struct kvm_vcpu *vcpu, u32 control);
int kvm_guest_write_cr(struct kvm_vcpu *vcpu, int cr, unsigned long val);
bool kvm_introspection_has_reply(struct kvm_vcpu *vcpu);
bool __kvm_introspection_defer_xsetbv(struct kvm_vcpu *vcpu, u64 old);
bool kvm_introspection_descriptor(struct kvm_vcpu *vcpu, u8 descriptor, bool write);

/* MSRs (msr.c) */
bool __kvm_introspection_watches_msr(struct kvm_vcpu *vcpu, u32 msr);
enum kvm_introspection_wrmsr __kvm_introspection_wrmsr(struct kvm_vcpu *vcpu, u32 msr, u64 *data);

static __always_inline bool kvm_is_introspected(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       rcu_access_pointer(vcpu->arch.introspection.vi);
}

/* In the run loop nothing else waits for the VMM. */
static __always_inline bool kvm_introspection_is_half_way(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       vcpu->arch.complete_userspace_io;
}

/*
 * Send what was recorded, wait for replies, run commands.  Called within
 * kvm->srcu read side, which it leaves and takes again.  1: go on;
 * 0, -EINTR: KVM_RUN is to return.
 */
static inline int kvm_introspection_work(struct kvm_vcpu *vcpu)
{
	/* What a session has left half-way (emulated.c) is to be ended, and the next waited for. */
	return kvm_is_introspected(vcpu) || kvm_introspection_is_half_way(vcpu) ||
	       READ_ONCE(vcpu->kvm->arch.introspection.stopped) ?
		__kvm_introspection_work(vcpu) : 1;
}

/* By which level a gfn may be mapped, its pages being restricted one by one. */
static inline int kvm_introspection_max_level(struct kvm *kvm, gfn_t gfn, int level)
{
	if (!static_branch_unlikely(&kvm_introspection_hooked) ||
	    xa_empty(&kvm->arch.introspection.denied))
		return level;
	return __kvm_introspection_max_level(kvm, gfn, level);
}

/* What is left of the MMU's access bits for a page; 0: it is not to be mapped. */
static inline unsigned int kvm_introspection_pte_access(struct kvm_vcpu *vcpu,
							 union kvm_mmu_page_role role,
							 gfn_t gfn, unsigned int access)
{
	if (!static_branch_unlikely(&kvm_introspection_hooked) ||
	    xa_empty(&vcpu->kvm->arch.introspection.denied))
		return access;
	return __kvm_introspection_pte_access(vcpu, role, gfn, access);
}

/* True when a page fault of the second level is introspection's, and dealt with. */
static inline bool kvm_introspection_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_page_fault(vcpu, gpa, error_code);
}

/* True when the emulator has to leave the instruction because of an access. */
static inline bool kvm_introspection_emulates(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva,
					      bool write)
{
	return kvm_is_introspected(vcpu) && !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_emulates(vcpu, gpa, gva, write);
}

/* The same for all pages of an access, none of which has been looked at. */
static inline bool kvm_introspection_emulates_virt(struct kvm_vcpu *vcpu, gva_t gva,
						   unsigned int bytes, bool write)
{
	return kvm_is_introspected(vcpu) && !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_emulates_virt(vcpu, gva, bytes, write);
}

/* True when an exit handler has to return before it accesses a memory operand. */
static inline bool kvm_introspection_handles_virt(struct kvm_vcpu *vcpu, gva_t gva,
						  unsigned int bytes, bool write)
{
	return kvm_is_introspected(vcpu) && !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_handles_virt(vcpu, gva, bytes, write);
}

/* The same for one in the page at gpa. */
static inline bool kvm_introspection_handles_phys(struct kvm_vcpu *vcpu, gpa_t gpa, bool write)
{
	return kvm_is_introspected(vcpu) && !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_handles_phys(vcpu, gpa, write);
}

/* The emulator is through with an instruction, or with a round of a REP instruction. */
static inline void kvm_introspection_round_ends(struct kvm_vcpu *vcpu)
{
	if (kvm_is_introspected(vcpu))
		__kvm_introspection_round_ends(vcpu);
}

/* The vCPU is to execute one instruction and no more. */
static __always_inline bool kvm_introspection_is_stepping(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) && vcpu->arch.introspection.stepping;
}

/* Interrupts, NMIs and SMIs wait until that instruction is through. */
static inline bool kvm_introspection_holds_events(struct kvm_vcpu *vcpu)
{
	return kvm_introspection_is_stepping(vcpu) && vcpu->arch.introspection.step_holds_events;
}

/* After each call of vcpu_enter_guest(). */
static inline void kvm_introspection_step_end(struct kvm_vcpu *vcpu)
{
	if (kvm_introspection_is_stepping(vcpu))
		__kvm_introspection_step_end(vcpu);
}

/* An instruction ends that KVM has carried out for the guest. */
static inline void kvm_introspection_instruction_ends(struct kvm_vcpu *vcpu)
{
	if (static_branch_unlikely(&kvm_introspection_hooked) && vcpu->arch.introspection.singlestep)
		__kvm_introspection_instruction_ends(vcpu);
}

/* While the tool steps the vCPU, or has let an access of its next instruction through. */
static inline bool kvm_introspection_holds_interrupts(struct kvm_vcpu *vcpu)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_holds_interrupts(vcpu);
}

/* True when the hypercall is the tool's: *r is what the exit handler returns. */
static inline bool kvm_introspection_hypercall(struct kvm_vcpu *vcpu, int *r)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_hypercall(vcpu, r);
}

/* True when a checked write of a control register has to wait for the tool. */
static inline bool kvm_introspection_defer_cr(struct kvm_vcpu *vcpu, int cr,
					      unsigned long old, unsigned long new)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_defer_cr(vcpu, cr, old, new);
}

/* Whether the hardware has to intercept writes of an MSR for the tool. */
static inline bool kvm_introspection_watches_msr(struct kvm_vcpu *vcpu, u32 msr)
{
	return (vcpu->arch.introspection.intercepts & KVM_INTROSPECT_MSR) &&
	       __kvm_introspection_watches_msr(vcpu, msr);
}

/* False for intercepts that a session left: which MSRs they are about went with it. */
static inline bool kvm_introspection_knows_msrs(struct kvm_vcpu *vcpu)
{
	return rcu_access_pointer(vcpu->arch.introspection.vi) ||
	       !(vcpu->arch.introspection.intercepts & KVM_INTROSPECT_MSR);
}

/* *data becomes what is to be written, to be checked like the guest's value. */
static inline enum kvm_introspection_wrmsr kvm_introspection_wrmsr(struct kvm_vcpu *vcpu, u32 msr,
								    u64 *data)
{
	return kvm_is_introspected(vcpu) ? __kvm_introspection_wrmsr(vcpu, msr, data) :
					   KVM_WRMSR_WRITE;
}

/* XCR0 is written: true when the instruction has to wait for the tool before it is through. */
static inline bool kvm_introspection_defer_xsetbv(struct kvm_vcpu *vcpu, u64 old)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_defer_xsetbv(vcpu, old);
}

/* Before 6.12.117 nobody asked whether a #PF is the hardware's. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 117)
#define kvm_introspection_call_page_fault(inject, vcpu, fault, from_hardware) \
	inject(vcpu, fault, from_hardware)
#else
#define kvm_introspection_call_page_fault(inject, vcpu, fault, from_hardware) \
	inject(vcpu, fault)
#endif

/* Give the guest a #PF that its own hardware raised. */
static inline void kvm_introspection_inject_page_fault(struct kvm_vcpu *vcpu,
						       struct x86_exception *fault)
{
	kvm_introspection_call_page_fault(vcpu->arch.walk_mmu->inject_page_fault,
					  vcpu, fault, true);
}

/*
 * Before the VMM writes this vCPU's registers; vcpu->mutex is held.  Should they
 * differ afterwards, the event that is open is void.
 */
static inline void kvm_introspection_vmm_writes(struct kvm_vcpu *vcpu)
{
	if (kvm_is_introspected(vcpu))
		__kvm_introspection_vmm_writes(vcpu);
}

/* The vCPU is reset. */
static inline void kvm_introspection_void_event(struct kvm_vcpu *vcpu)
{
	if (kvm_is_introspected(vcpu))
		__kvm_introspection_void_event(vcpu);
}

#endif
