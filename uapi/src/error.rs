// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Error values. A reply carries them negated; they do not depend on the operating system at either end.

macro_rules! errors {
    ($( $(#[doc = $doc:literal])* $name:ident = $value:literal; )*) => {
        $( $(#[doc = $doc])* pub const $name: i32 = $value; )*

        /// Every error value with its name.
        pub const ALL: &[(i32, &str)] = &[$( ($name, stringify!($name)) ),*];

        /// What each is answered for, in the same order.
        pub const ANSWERS: &[&str] = &[$( concat!($($doc, "\n"),*) ),*];
    };
}

errors! {
    /// The VMM does not allow the command or the event; the memory slot is read-only.
    EPERM = 1;
    /// No such command or event in this kernel; no memory there.
    ENOENT = 2;
    /// Nothing so far.
    E2BIG = 7;
    /// The vCPU is not initialised: an AP before its INIT. The same command may succeed later.
    EAGAIN = 11;
    /// The kernel has no memory for a command that is to wait for its vCPU; it was not carried out.
    ENOMEM = 12;
    /// Nothing so far.
    EFAULT = 14;
    /// Somebody else has it, or too much is waiting already.
    EBUSY = 16;
    /// Padding that is not zero, a value out of range, a message too short.
    EINVAL = 22;
    /// Not on this CPU, in this VM or at this moment.
    EOPNOTSUPP = 95;
    /// This kernel does not carry out a command of this id.
    ENOSYS = 1000;
}
