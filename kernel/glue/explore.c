// SPDX-License-Identifier: GPL-2.0-only
/*
 * Schedule exploration: holds whoever passes, as a seed says.  Not part of any
 * build but that of `cargo xtask explore`.
 *
 * The seed decides for each place once: whether anyone is held there at all,
 * how often, how, and for how long.  So most of what a seed does, it does again
 * when the machine does not repeat itself to the instruction.
 */
#include <linux/atomic.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/processor.h>
#include <linux/sched.h>
#include <linux/sysfs.h>

#include "introspection/explore.h"

static unsigned long explore;
module_param(explore, ulong, 0644);
MODULE_PARM_DESC(explore, "Seed by which threads are held where it matters who comes first (0: none is)");

static atomic_t passes[KVMI_PLACES];
static atomic_t holds;

static int get_holds(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%d\n", atomic_read(&holds));
}

static const struct kernel_param_ops holds_ops = { .get = get_holds };
module_param_cb(explore_holds, &holds_ops, NULL, 0444);
MODULE_PARM_DESC(explore_holds, "How often a thread was held");

/* Steele and others' SplitMix64: every bit of the result hangs on every bit of x. */
static u64 mix(u64 x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static void hold(u64 plan)
{
	unsigned int turns = 1U << (plan % 8);

	/* Where CPUs take turns, each PAUSE gives the turn away. */
	if (!preemptible() || (plan & BIT(4))) {
		while (turns--)
			cpu_relax();
	} else if (plan & BIT(5)) {
		schedule();
	} else {
		schedule_timeout_uninterruptible(1 + (plan & 1));
	}
}

void kvmi_explore(enum kvmi_place place)
{
	u64 seed = READ_ONCE(explore);
	u64 plan, often;

	if (!seed)
		return;

	plan = mix(mix(seed) + place);
	/* Two of three places stay as they are: who is held everywhere is never late. */
	if (plan % 3)
		return;
	plan = mix(plan);
	/* Each time, or one time in 4, 16, 64. */
	often = BIT(plan >> 62 << 1);
	if (mix(plan + atomic_inc_return(&passes[place])) % often)
		return;

	atomic_inc(&holds);
	hold(plan);
}
