// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory whose page faults nobody serves, by userfaultfd(2): who touches it stands still, with whatever it holds, until it is let go.

#![allow(unsafe_code)]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, munmap, userfaultfd};

use crate::Failure;

/// The page that is registered, in bytes.
const PAGE_BYTES: usize = 4096;
/// `UFFD_API`
const API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`
const MISSING: u64 = 1;

/// `struct uffdio_api`
#[repr(C)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

const UFFDIO_API: u32 = opcode::read_write::<UffdApi>(0xaa, 0x3f);
const UFFDIO_REGISTER: u32 = opcode::read_write::<UffdRegister>(0xaa, 0);

/// Memory whose page faults wait until this is dropped; then they are served with zeroes.
#[derive(Debug)]
pub struct Withheld {
    faults: OwnedFd,
}

impl Withheld {
    /// Withholds the pages of a mapping of anonymous memory that nobody has touched yet.
    ///
    /// # Errors
    ///
    /// Those of userfaultfd(2) and its ioctls.
    ///
    /// # Safety
    ///
    /// The mapping is the caller's and outlives this.
    pub unsafe fn new(address: usize, bytes: usize) -> Result<Self, Errno> {
        // Of one that blocks, poll() says at once that it cannot be waited for.
        // SAFETY: what faults there is the caller's matter.
        let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK)? };
        let mut api = UffdApi {
            api: API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure during the call.
        unsafe { ioctl(&faults, Updater::<UFFDIO_API, _>::new(&mut api))? };
        let mut register = UffdRegister {
            start: address as u64,
            len: bytes as u64,
            mode: MISSING,
            ioctls: 0,
        };
        // SAFETY: as above; the mapping stays, by the caller's promise.
        unsafe { ioctl(&faults, Updater::<UFFDIO_REGISTER, _>::new(&mut register))? };
        Ok(Self { faults })
    }

    /// Waits until somebody stands still there.
    ///
    /// # Errors
    ///
    /// Those of poll(2); EIO when the descriptor has something else to say.
    pub fn wait_for_fault(&self) -> Result<(), Errno> {
        let mut fault = [PollFd::new(&self.faults, PollFlags::IN)];
        poll(&mut fault, None)?;
        match fault[0].revents() {
            PollFlags::IN => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}

/// A thread that receives from a socket into such memory, and so holds the lock of the socket's receiving side.
#[derive(Debug)]
pub(crate) struct LockHolder {
    page: Withheld,
    thread: JoinHandle<()>,
}

impl LockHolder {
    /// Starts it; its fault is open when this returns. One byte is sent from the socket's peer for it to receive.
    pub(crate) fn start(mut socket: UnixStream, mut peer: &UnixStream) -> Result<Self, Failure> {
        // SAFETY: a new mapping, wherever the kernel likes.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let address = mapping as usize;
        // SAFETY: the page stays mapped until the thread below, which expects to stop there, unmaps it.
        let page = unsafe { Withheld::new(address, PAGE_BYTES)? };

        std::io::Write::write_all(&mut peer, &[0])?;
        let thread = std::thread::spawn(move || {
            // SAFETY: the mapping is this thread's alone and zero where it is not written.
            let memory = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, PAGE_BYTES) };
            // What it receives is of no interest.
            let _ = socket.read(memory);
            // SAFETY: nothing refers to the mapping any more.
            let _ = unsafe { munmap(address as *mut _, PAGE_BYTES) };
        });
        page.wait_for_fault()?;
        Ok(Self { page, thread })
    }

    /// Lets go: the fault is served with a page of zeroes.
    pub(crate) fn release(self) -> Result<(), Failure> {
        drop(self.page);
        self.thread
            .join()
            .map_err(|_| Failure::new("the thread that held the socket's lock panicked"))
    }
}
