// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Linked into each of KVM's selftests, with --wrap=ioctl and --wrap=alarm. Where the
 * environment asks for it, a tool (harness/l1/src/selftest/tool.rs) is told of
 * each VM that the test makes, and of each vCPU that is about to run for the
 * first time. The test waits for its answer. Without the variable each call
 * passes as it is.
 *
 * There is a connection for each question, so that a test finds no
 * descriptors that it did not open. What a descriptor stands for is noted by
 * its number, and noted anew when the number is used again.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/kvm.h>

/* Names the abstract socket of the tool. */
#define VARIABLE "KVMI_SELFTEST_TOOL"

/* A test that could not be hooked ends with this status. */
#define NOT_HOOKED 97

/* A test's own deadline is so many times as long where it waits for a tool. */
#define TOOL_PATIENCE 20

/* Descriptors beyond this are not followed, which ends the test. */
#define MAX_FDS (1 << 16)

enum { VM_MADE = 1, VCPU_RUNS = 2, MEMORY_SET = 3 };

struct question {
	uint32_t about;
	uint32_t vm;
	uint32_t vcpu;
	/* Of memory: how many pages, and where they begin. */
	uint32_t pages;
	uint64_t gpa;
};

/* The error is an errno of the tool's or of the kernel's. */
struct answer {
	uint32_t error;
	uint32_t vm;
};

/*
 * What a descriptor is. The tool's numbers of VMs begin at 1. The table is no
 * static array: a test loads what is static of it into its guest, whose memory
 * is as large as the test alone needs.
 */
static struct {
	uint32_t vm;
	uint32_t vcpu;
	/* Of a VM: how many vCPUs it has. */
	atomic_uint vcpus;
	/* Of a vCPU: the tool has still to be told that it runs. */
	atomic_bool is_new;
} *known;

int __real_ioctl(int fd, unsigned long request, void *argument);
unsigned int __real_alarm(unsigned int seconds);

static _Noreturn void fail(const char *what, int error)
{
	dprintf(STDERR_FILENO, "not hooked: %s: %s\n", what, strerror(error));
	_exit(NOT_HOOKED);
}

static __attribute__((constructor)) void begin(void)
{
	if (!getenv(VARIABLE))
		return;
	known = mmap(NULL, MAX_FDS * sizeof(*known), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (known == MAP_FAILED)
		fail("memory", errno);
}

static struct answer ask(const char *tool, struct question question, int fd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct iovec bytes = { &question, sizeof(question) };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} beside = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)),
				 .cmsg_level = SOL_SOCKET,
				 .cmsg_type = SCM_RIGHTS } };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1 };
	socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(tool);
	struct answer answer;
	ssize_t got;
	int link;

	if (length > sizeof(address))
		fail(VARIABLE, ENAMETOOLONG);
	memcpy(address.sun_path + 1, tool, strlen(tool));
	if (fd >= 0) {
		memcpy(CMSG_DATA(&beside.header), &fd, sizeof(fd));
		message.msg_control = &beside;
		message.msg_controllen = sizeof(beside.space);
	}
	link = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (link < 0)
		fail("socket", errno);
	if (connect(link, (struct sockaddr *)&address, length))
		fail("connect to the tool", errno);
	if (sendmsg(link, &message, MSG_NOSIGNAL) != sizeof(question))
		fail("ask the tool", errno);
	do {
		got = recv(link, &answer, sizeof(answer), 0);
	} while (got < 0 && errno == EINTR);
	if (got != sizeof(answer))
		fail("hear the tool", got < 0 ? errno : EPIPE);
	close(link);
	return answer;
}

static void vm_made(const char *tool, int fd)
{
	struct answer answer = ask(tool, (struct question){ .about = VM_MADE }, fd);

	if (answer.error)
		fail("HOOK", answer.error);
	if (fd >= MAX_FDS)
		fail("the descriptor of a VM", ERANGE);
	known[fd].vm = answer.vm;
	known[fd].vcpus = 0;
}

static void vcpu_made(int vm, int fd)
{
	if (vm >= MAX_FDS || fd >= MAX_FDS)
		fail("the descriptor of a vCPU", ERANGE);
	known[fd].vm = known[vm].vm;
	known[fd].vcpu = known[vm].vcpus++;
	known[fd].is_new = 1;
}

static void vcpu_runs(const char *tool, int fd)
{
	struct question question;
	struct answer answer;

	if (fd < 0 || fd >= MAX_FDS || !known[fd].is_new || !known[fd].vm)
		return;
	question = (struct question){ .about = VCPU_RUNS,
				       .vm = known[fd].vm,
				       .vcpu = known[fd].vcpu };
	answer = ask(tool, question, -1);
	/* A vCPU without INIT takes no command: it is new the next time too. */
	if (answer.error == EAGAIN)
		return;
	if (answer.error)
		fail("watch a vCPU", answer.error);
	known[fd].is_new = 0;
}

static void memory_set(const char *tool, int fd,
		       const struct kvm_userspace_memory_region *region)
{
	struct question question = { .about = MEMORY_SET };
	struct answer answer;

	if (fd < 0 || fd >= MAX_FDS || !known[fd].vm || !region->memory_size)
		return;
	/* The memory of SMM is an address space of its own; what a tool restricts is the guest's. */
	if (region->slot >> 16)
		return;
	question.vm = known[fd].vm;
	question.pages = region->memory_size / 4096;
	question.gpa = region->guest_phys_addr;
	answer = ask(tool, question, -1);
	if (answer.error)
		fail("watch memory", answer.error);
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	const char *tool = known ? getenv(VARIABLE) : NULL;
	int before = errno;
	void *argument;
	va_list list;
	int result;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);

	if (tool && request == KVM_RUN)
		vcpu_runs(tool, fd);
	errno = before;
	result = __real_ioctl(fd, request, argument);
	if (!tool || result < 0)
		return result;
	before = errno;
	if (request == KVM_CREATE_VM)
		vm_made(tool, result);
	else if (request == KVM_CREATE_VCPU)
		vcpu_made(fd, result);
	/* Of both structures the beginning is the same. */
	else if (request == KVM_SET_USER_MEMORY_REGION ||
		 request == KVM_SET_USER_MEMORY_REGION2)
		memory_set(tool, fd, argument);
	errno = before;
	return result;
}

unsigned int __wrap_alarm(unsigned int seconds)
{
	return __real_alarm(known ? seconds * TOOL_PATIENCE : seconds);
}
