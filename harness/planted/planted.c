// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Does what a kernel must not do, to prove that the lab sees it. Loaded in the
 * lab's L1 only, by the scenarios of the group planted::.
 */
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *what = "";
module_param(what, charp, 0);
MODULE_PARM_DESC(what, "oops, warn, lockup, use-after-free, lock-order or sleep");

/* Longer than a soft lockup takes with watchdog_thresh=1, shorter than an RCU stall. */
#define LOCKUP_JIFFIES (6 * HZ)

static void lock_up(void)
{
	unsigned long end = jiffies + LOCKUP_JIFFIES;

	preempt_disable();
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
}

/* What only a kernel sees that watches itself. */
static void use_after_free(void)
{
	int *volatile gone = kzalloc(sizeof(*gone), GFP_KERNEL);

	kfree(gone);
	if (gone)
		READ_ONCE(*gone);
}

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);

static void lock_order(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);

	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void sleep_where_it_must_not(void)
{
	preempt_disable();
	might_sleep();
	preempt_enable();
}

static int __init planted_init(void)
{
	static int *volatile nowhere;

	if (!strcmp(what, "oops"))
		*nowhere = 1;
	else if (!strcmp(what, "warn"))
		WARN(1, "planted\n");
	else if (!strcmp(what, "lockup"))
		lock_up();
	else if (!strcmp(what, "use-after-free"))
		use_after_free();
	else if (!strcmp(what, "lock-order"))
		lock_order();
	else if (!strcmp(what, "sleep"))
		sleep_where_it_must_not();
	else
		return -EINVAL;
	return 0;
}

static void __exit planted_exit(void)
{
}

module_init(planted_init);
module_exit(planted_exit);
MODULE_DESCRIPTION("Failures planted by the kvmi lab");
MODULE_LICENSE("Dual MIT/GPL");
