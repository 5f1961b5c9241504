// SPDX-License-Identifier: MIT OR Apache-2.0
//! The five introspection ioctls, as a VMM calls them.

#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use kvmi_uapi::ioctl::{
    Feature, Hook, KVM_INTROSPECTION_COMMAND, KVM_INTROSPECTION_EVENT, KVM_INTROSPECTION_HOOK,
    KVM_INTROSPECTION_PREUNHOOK, KVM_INTROSPECTION_UNHOOK,
};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl};

/// HOOK. Takes the socket by number, so that numbers that are none can be tried.
///
/// # Errors
///
/// The ioctl's.
pub fn hook(vm: BorrowedFd<'_>, socket: RawFd, flags: u32, uuid: [u8; 16]) -> Result<(), Errno> {
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
///
/// The ioctl's.
pub fn unhook(vm: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { ioctl(vm, NoArg::<KVM_INTROSPECTION_UNHOOK>::new()) }
}

/// PREUNHOOK.
///
/// # Errors
///
/// The ioctl's.
pub fn preunhook(vm: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { ioctl(vm, NoArg::<KVM_INTROSPECTION_PREUNHOOK>::new()) }
}

/// COMMAND.
///
/// # Errors
///
/// The ioctl's.
pub fn permit_command(vm: BorrowedFd<'_>, allow: u32, id: i32) -> Result<(), Errno> {
    // SAFETY: the kernel reads the 8 bytes of the argument.
    unsafe { ioctl(vm, Setter::<KVM_INTROSPECTION_COMMAND, _>::new(Feature { allow, id })) }
}

/// EVENT.
///
/// # Errors
///
/// The ioctl's.
pub fn permit_event(vm: BorrowedFd<'_>, allow: u32, id: i32) -> Result<(), Errno> {
    // SAFETY: the kernel reads the 8 bytes of the argument.
    unsafe { ioctl(vm, Setter::<KVM_INTROSPECTION_EVENT, _>::new(Feature { allow, id })) }
}
