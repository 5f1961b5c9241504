// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Error values. A reply carries them negated; they do not depend on the operating system at either end.

/// Not allowed by the VMM.
pub const EPERM: i32 = 1;
/// No such thing: command, event, page.
pub const ENOENT: i32 = 2;
/// Too much.
pub const E2BIG: i32 = 7;
/// The vCPU is not initialised yet; the same command may succeed later.
pub const EAGAIN: i32 = 11;
/// Out of memory.
pub const ENOMEM: i32 = 12;
/// Bad address.
pub const EFAULT: i32 = 14;
/// Taken, or too many waiting.
pub const EBUSY: i32 = 16;
/// Malformed or out of range.
pub const EINVAL: i32 = 22;
/// This CPU, or this moment, does not offer it.
pub const EOPNOTSUPP: i32 = 95;
/// The kernel does not know the message.
pub const ENOSYS: i32 = 1000;

/// Every error value with its name.
pub const ALL: &[(i32, &str)] = &[
    (EPERM, "EPERM"),
    (ENOENT, "ENOENT"),
    (E2BIG, "E2BIG"),
    (EAGAIN, "EAGAIN"),
    (ENOMEM, "ENOMEM"),
    (EFAULT, "EFAULT"),
    (EBUSY, "EBUSY"),
    (EINVAL, "EINVAL"),
    (EOPNOTSUPP, "EOPNOTSUPP"),
    (ENOSYS, "ENOSYS"),
];
