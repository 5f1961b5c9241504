/* SPDX-License-Identifier: GPL-2.0-only */
/* What the guest does that a tool may want to know of, and what makes an event void (event/). */
#ifndef KVM_INTROSPECTION_EVENTS_H
#define KVM_INTROSPECTION_EVENTS_H

#include <linux/version.h>

#include "introspection/introspection.h"
#include "kvmi.h"

/* vcpu->arch.introspection.intercepts: the tool's share of what the hardware intercepts. */
#define KVM_INTROSPECT_BP	BIT(0)
#define KVM_INTROSPECT_CR0	BIT(1)
#define KVM_INTROSPECT_CR3	BIT(2)
#define KVM_INTROSPECT_MSR	BIT(3)	/* which: kvm_introspection_watches_msr() */
#define KVM_INTROSPECT_DESC	BIT(4)

/* What becomes of the guest's own WRMSR. */
enum kvm_introspection_wrmsr {
	KVM_WRMSR_WRITE,	/* it is done, with the value that is there now */
	KVM_WRMSR_DEFERRED,	/* neither done nor refused, the instruction is to be run again */
	KVM_WRMSR_VETOED,	/* it is over, and wrote nothing */
};

bool __kvm_introspection_hypercall(struct kvm_vcpu *vcpu, int *r);
bool __kvm_introspection_write_cr(struct kvm_vcpu *vcpu, int cr, unsigned long *val);
void __kvm_introspection_void_event(struct kvm_vcpu *vcpu);
void __kvm_introspection_vmm_writes(struct kvm_vcpu *vcpu);
bool kvm_introspection_breakpoint(struct kvm_vcpu *vcpu, u8 insn_len);
bool kvm_introspection_owns_debugging(struct kvm_vcpu *vcpu, u32 control);
bool kvm_introspection_has_reply(struct kvm_vcpu *vcpu);
bool __kvm_introspection_defer_xsetbv(struct kvm_vcpu *vcpu, u64 old);
bool kvm_introspection_descriptor(struct kvm_vcpu *vcpu, u8 descriptor, bool write);

bool __kvm_introspection_watches_msr(struct kvm_vcpu *vcpu, u32 msr);
enum kvm_introspection_wrmsr __kvm_introspection_wrmsr(struct kvm_vcpu *vcpu, u32 msr, u64 *data);

/* True when the hypercall is the tool's: *r is what the exit handler returns. */
static inline bool kvm_introspection_hypercall(struct kvm_vcpu *vcpu, int *r)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_hypercall(vcpu, r);
}

/* True when a guest's own write of a control register has to wait for the tool. */
static inline bool kvm_introspection_write_cr(struct kvm_vcpu *vcpu, int cr, unsigned long *val)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_write_cr(vcpu, cr, val);
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
