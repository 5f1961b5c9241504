// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server: L1 stands at its snapshot, and each connection gets a fork of it.
//!
//! A connection begins with one line: the folder for the logs. A child ends when its connection closes or the server ends.

use std::ffi::{CStr, CString, c_int};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, process, ptr, thread};

use crate::{BOCHS, GIVE_UP, SNAPSHOT, save};

/// Names the variable with the number of the listening socket.
pub(crate) const SOCKET: &str = "KVMI_LAB_FORK_SOCKET";

/// Names the variable with the path of Bochs's own log.
const LOG: &str = "KVMI_LAB_FORK_LOG";

/// Names the variable with the path of L1's memory, as it was saved.
const MEMORY: &str = "KVMI_LAB_MEMORY";

/// L1's console, which Bochs opens when L1 first writes to it, in the folder that it works in then.
const CONSOLE: &str = "console.log";

/// Where a child saves itself, in the folder of its logs, so that one can see what the CPU holds.
const STATE: &CStr = c"emulator.state";

/// The device by which a process opens terminals for others to look at, `/dev/ptmx` or, in containers, `/dev/pts/ptmx`.
const TERMINAL_MAKER: &str = "ptmx";

/// Where the memory of the L1 that this process restores was saved.
pub(crate) fn saved_memory() -> Option<CString> {
    CString::new(env::var_os(MEMORY)?.into_vec()).ok()
}

/// Bochs looks for what has come for its serial port. The first time, a restored one becomes a server; a child returns.
pub(crate) fn at_port(serial: c_int) {
    if let Some(listener) = inherited_listener()
        && let Err(e) = serve(&listener, serial)
    {
        BOCHS.give_up(&e.to_string());
    }
}

/// The listening socket, the first time; a child is only a machine and does not fork again.
fn inherited_listener() -> Option<UnixListener> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    let number: RawFd = env::var(SOCKET).ok()?.parse().ok()?;
    // SAFETY: the lab opened this descriptor for this library and nothing else in the process uses it.
    Some(unsafe { UnixListener::from_raw_fd(number) })
}

/// Accepts for ever; returns in a child, which then goes on as the machine.
fn serve(listener: &UnixListener, serial: c_int) -> io::Result<()> {
    // Children are not waited for; ignoring the signal lets them vanish.
    // SAFETY: setting a signal's disposition to "ignore" has no requirements.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let server = process::id();
    // Nobody looks at a child's screen.
    let nobody = File::options().read(true).write(true).open("/dev/null")?;
    redirect(|target| target.ends_with(TERMINAL_MAKER), &nobody)?;
    // The lab waits for this.
    // SAFETY: one byte, from memory that outlives the call.
    if unsafe { libc::write(serial, [SNAPSHOT].as_ptr().cast(), 1) } != 1 {
        return Err(io::Error::last_os_error());
    }
    loop {
        let (connection, _) = listener.accept()?;
        // Abstract sockets have no permissions, and whoever connects says where logs are written.
        if !is_ours(&connection) {
            continue;
        }
        // SAFETY: Bochs runs its machine on this one thread, so the child's memory is consistent.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                if let Err(e) = become_machine(connection, serial, server) {
                    BOCHS.give_up(&format!("child: {e}"));
                }
                return Ok(());
            }
            // The child has the connection now.
            _ => drop(connection),
        }
    }
}

/// Whether a process of the same user is on the other side.
fn is_ours(connection: &UnixStream) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `length` live as long as the call and say how large they are.
    let answer = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut peer).cast(),
            &raw mut length,
        )
    };
    // SAFETY: takes nothing.
    answer == 0 && peer.uid == unsafe { libc::geteuid() }
}

fn become_machine(mut connection: UnixStream, serial: c_int, server: u32) -> io::Result<()> {
    // SAFETY: both calls take plain numbers. The child gets a group of its own and dies with the server.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    // SAFETY: takes nothing; the server may have ended before the line above.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(server) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let folder = read_line(&mut connection)?;
    let log = env::var_os(LOG).ok_or_else(|| io::Error::other(format!("{LOG} is not set")))?;
    redirect(
        |target| target == Path::new(&log),
        &File::create(folder.join("emulator.log"))?,
    )?;
    // An L1 that says nothing has a log all the same.
    File::create(folder.join(CONSOLE))?;
    env::set_current_dir(&folder)?;
    show_state_at_signal(&folder)?;
    // So that time does not go on before the order is there, and each run of a scenario is the same.
    wait_for_order(&connection)?;
    replace(connection.as_raw_fd(), serial)?;
    thread::spawn(move || end_with_connection(&connection));
    Ok(())
}

/// Leaves the process's number in the folder, for whoever wants to see what the CPU holds, and has the process save itself there and end
/// when a signal says so.
fn show_state_at_signal(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("emulator.pid"), process::id().to_string())?;
    let handler = show_state as extern "C" fn(c_int) as libc::sighandler_t;
    // SAFETY: the handler takes the signal's number and is there as long as the process.
    if unsafe { libc::signal(libc::SIGINT, handler) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The machine may be anywhere and does not go on after this. Should it have been where it must not be saved, then there is nothing to see.
extern "C" fn show_state(_: c_int) {
    // SAFETY: a C string. It may be there already; that nothing can be saved there shows in a moment.
    unsafe { libc::mkdir(STATE.as_ptr(), 0o700) };
    if let Err(why) = save::save(STATE) {
        BOCHS.give_up(&why);
    }
    // SAFETY: without exit handlers, which belong to the server.
    unsafe { libc::_exit(GIVE_UP) }
}

/// Waits until there is something to read, or the other side has gone.
fn wait_for_order(connection: &UnixStream) -> io::Result<()> {
    let mut wanted = libc::pollfd {
        fd: connection.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives as long as the call.
    while unsafe { libc::poll(ptr::from_mut(&mut wanted), 1, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// Ends this process when the other side closes the connection.
fn end_with_connection(connection: &UnixStream) {
    let mut wanted = libc::pollfd {
        fd: connection.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    loop {
        // SAFETY: one pollfd, which lives as long as the call.
        let ready = unsafe { libc::poll(ptr::from_mut(&mut wanted), 1, -1) };
        if ready > 0 {
            // SAFETY: as above, without exit handlers: nobody is left to see what they do.
            unsafe { libc::_exit(GIVE_UP) };
        }
    }
}

/// Reads up to a newline, byte by byte: what follows belongs to the machine.
fn read_line(from: &mut UnixStream) -> io::Result<PathBuf> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line).map(PathBuf::from).map_err(io::Error::other)
}

/// Makes every descriptor that is open on what `is_it` accepts be open on `new` instead; there must be one.
fn redirect(is_it: impl Fn(&Path) -> bool, new: &File) -> io::Result<()> {
    let mut found = false;
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|n| n.parse::<RawFd>().ok()) else {
            continue;
        };
        if fs::read_link(entry.path()).is_ok_and(|target| is_it(&target)) {
            replace(new.as_raw_fd(), number)?;
            found = true;
        }
    }
    if found {
        Ok(())
    } else {
        Err(io::Error::other("a log or the screen is not open where it should be"))
    }
}

fn replace(with: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes plain numbers; `number` stays open, on something else.
    if unsafe { libc::dup2(with, number) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
