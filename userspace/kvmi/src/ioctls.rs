// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls on a VM's descriptor and on a session's: docs/protocol.md, 2.2 and 2.4.
//!
//! Each fails as that page says. [`Errno::NOTTY`] comes of a file that is no VM, and of a kernel without introspection.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

pub use kvmi_uapi::ioctl::{ALL, Open, Status};
use kvmi_uapi::ioctl::{
    Hook, KVM_INTROSPECTION_COMMAND, KVM_INTROSPECTION_EVENT, KVM_INTROSPECTION_FREE, KVM_INTROSPECTION_HANG_UP,
    KVM_INTROSPECTION_HOOK, KVM_INTROSPECTION_OPEN, KVM_INTROSPECTION_PREUNHOOK, KVM_INTROSPECTION_STATUS,
    KVM_INTROSPECTION_UNHOOK, Permission,
};
pub use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Setter, Updater, ioctl};
use zerocopy::FromZeros;

/// HOOK. Takes the socket by number, so that numbers that are none can be tried.
///
/// # Errors
/// The ioctl's.
pub fn hook(vm: impl AsFd, socket: RawFd, flags: u32, uuid: [u8; 16]) -> Result<(), Errno> {
    let argument = Hook {
        fd: socket,
        flags,
        uuid,
    };
    // SAFETY: the kernel reads the 24 bytes of the argument and keeps no pointer to them; another file than a VM answers ENOTTY.
    unsafe { ioctl(vm, Setter::<KVM_INTROSPECTION_HOOK, _>::new(argument)) }
}

/// UNHOOK.
///
/// # Errors
/// The ioctl's.
pub fn unhook(vm: impl AsFd) -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { ioctl(vm, NoArg::<KVM_INTROSPECTION_UNHOOK>::new()) }
}

/// FREE.
///
/// # Errors
/// The ioctl's.
pub fn free(vm: impl AsFd) -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { ioctl(vm, NoArg::<KVM_INTROSPECTION_FREE>::new()) }
}

/// PREUNHOOK.
///
/// # Errors
/// The ioctl's.
pub fn preunhook(vm: impl AsFd) -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { ioctl(vm, NoArg::<KVM_INTROSPECTION_PREUNHOOK>::new()) }
}

/// COMMAND.
///
/// # Errors
/// The ioctl's.
pub fn permit_command(vm: impl AsFd, allow: u32, id: i32) -> Result<(), Errno> {
    // SAFETY: the kernel reads the 8 bytes of the argument.
    unsafe {
        ioctl(
            vm,
            Setter::<KVM_INTROSPECTION_COMMAND, _>::new(Permission { allow, id }),
        )
    }
}

/// EVENT.
///
/// # Errors
/// The ioctl's.
pub fn permit_event(vm: impl AsFd, allow: u32, id: i32) -> Result<(), Errno> {
    // SAFETY: the kernel reads the 8 bytes of the argument.
    unsafe { ioctl(vm, Setter::<KVM_INTROSPECTION_EVENT, _>::new(Permission { allow, id })) }
}

/// STATUS.
///
/// # Errors
/// The ioctl's.
pub fn status(vm: impl AsFd) -> Result<Status, Errno> {
    let mut status = Status::new_zeroed();
    // SAFETY: the kernel writes the 24 bytes of the argument, of which any value is valid.
    unsafe { ioctl(vm, Updater::<KVM_INTROSPECTION_STATUS, _>::new(&mut status))? };
    Ok(status)
}

/// OPEN; the session's descriptor.
///
/// # Errors
/// The ioctl's.
pub fn open(vm: impl AsFd, how: &Open) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads the 72 bytes of the argument and keeps no pointer to them.
    unsafe { ioctl(vm, Opens(*how)) }
}

/// HANG_UP, on a session's descriptor.
///
/// # Errors
/// The ioctl's.
pub fn hang_up(session: impl AsFd) -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { ioctl(session, NoArg::<KVM_INTROSPECTION_HANG_UP>::new()) }
}

/// OPEN, whose result is a descriptor.
struct Opens(Open);

// SAFETY: the opcode takes a pointer to an `Open`, which it reads, and returns a new descriptor.
unsafe impl Ioctl for Opens {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        KVM_INTROSPECTION_OPEN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<Self::Output> {
        // SAFETY: the kernel has made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
