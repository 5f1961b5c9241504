// SPDX-License-Identifier: MIT OR Apache-2.0
//! Preloaded into Bochs: makes it fork at L1's point, once for each scenario.
//!
//! Bochs sends what L1 writes to its second serial port over a socket, by `send`. This library stands before that function. When the
//! byte [`POINT`] leaves, the process stops being a machine and becomes a server: it accepts connections of its own user on a unix
//! socket that it inherited, and for each forks a child that goes on as the machine. In the child the connection takes the place of the serial port's
//! socket, and the console log and Bochs's own log are new files.
//!
//! A connection begins with one line: the folder for the logs. A child ends when its connection closes or the server ends.
//!
//! The process gives the library what it must know in its environment: [`SOCKET`], [`CONSOLE`], [`LOG`].
//!
//! Bochs also draws its screen on a terminal that it opens for someone to look at, and stops for good when nobody does. So this library
//! looks, up to the point, and after it lets the machine draw on nothing.
//!
//! While its CPU is idle Bochs waits a millisecond of real time for someone to type, again and again, although the time inside passes by
//! itself. Nobody types, so this library answers at once.

// Unsafe is what this library is for: it replaces a C function, and forks a process that is not its own.
#![allow(unsafe_code)]

pub mod random;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, process, ptr, thread};

/// As in kvmi-lab-control, which this library does not depend on: it lives inside another program and is kept small.
const POINT: u8 = 0x06;

/// Names the variable with the number of the listening socket.
const SOCKET: &str = "KVMI_LAB_FORK_SOCKET";
/// Names the variable with the path of the console log that Bochs has open.
const CONSOLE: &str = "KVMI_LAB_FORK_CONSOLE";
/// Names the variable with the path of Bochs's own log.
const LOG: &str = "KVMI_LAB_FORK_LOG";

/// Exit code of a child that could not become the machine, or whose connection closed.
const GIVE_UP: c_int = 75;

type Send = unsafe extern "C" fn(c_int, *const c_void, usize, c_int) -> isize;
type Select =
    unsafe extern "C" fn(c_int, *mut libc::fd_set, *mut libc::fd_set, *mut libc::fd_set, *mut libc::timeval) -> c_int;
type Ptsname = unsafe extern "C" fn(c_int) -> *mut c_char;

/// The device by which a process opens terminals for others to look at, `/dev/ptmx` or, in containers, `/dev/pts/ptmx`.
const TERMINAL_MAKER: &str = "ptmx";

/// The function of the C library that one of ours stands before.
fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a C string.
    let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

/// Stands before the C library's `ptsname`, by which Bochs learns the name of the terminal that it made for its screen.
///
/// # Safety
///
/// As `ptsname(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptsname(terminal: c_int) -> *mut c_char {
    let Some(symbol) = next(c"ptsname") else {
        return ptr::null_mut();
    };
    // SAFETY: the symbol is the C library's function of the type `Ptsname`; its result is null or a C string until the next call.
    let name = unsafe { std::mem::transmute::<*mut c_void, Ptsname>(symbol)(terminal) };
    if !name.is_null() {
        // SAFETY: as above.
        let path = unsafe { CStr::from_ptr(name) }.to_owned();
        thread::spawn(move || look_at(&path));
    }
    name
}

/// Reads what is drawn on a terminal and forgets it. Only the server has this thread: a fork takes but the thread that forks.
fn look_at(path: &CStr) {
    // SAFETY: a C string, plain numbers, and memory of this function that outlives each call.
    unsafe {
        let terminal = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        let mut settings: libc::termios = std::mem::zeroed();
        if terminal < 0 || libc::tcgetattr(terminal, &raw mut settings) < 0 {
            return;
        }
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(terminal, libc::TCSANOW, &raw const settings);
        let mut drawn = [0_u8; 4096];
        while libc::read(terminal, drawn.as_mut_ptr().cast(), drawn.len()) > 0 {}
    }
}

/// Stands before the C library's `select`, by which Bochs waits for someone to type.
///
/// # Safety
///
/// As `select(2)`: each pointer is null or points to its type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    count: c_int,
    read: *mut libc::fd_set,
    write: *mut libc::fd_set,
    except: *mut libc::fd_set,
    at_most: *mut libc::timeval,
) -> c_int {
    // Descriptor 0 alone is the keyboard.
    if count == 1 && !read.is_null() && write.is_null() && except.is_null() {
        // SAFETY: the caller's promise.
        unsafe { libc::FD_ZERO(read) };
        return 0;
    }
    static NEXT: OnceLock<Option<Select>> = OnceLock::new();
    let found = NEXT.get_or_init(|| {
        let symbol = next(c"select")?;
        // SAFETY: the symbol is the C library's function of the type `Select`.
        Some(unsafe { std::mem::transmute::<*mut c_void, Select>(symbol) })
    });
    let Some(next) = found else { return -1 };
    // SAFETY: the caller's promise, passed on.
    unsafe { next(count, read, write, except, at_most) }
}

/// Stands before the C library's `send`.
///
/// # Safety
///
/// As `send(2)`: `data` points to `length` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(socket: c_int, data: *const c_void, length: usize, flags: c_int) -> isize {
    static NEXT: OnceLock<Option<Send>> = OnceLock::new();
    let found = NEXT.get_or_init(|| {
        let symbol = next(c"send")?;
        // SAFETY: the symbol is the C library's function of the type `Send`.
        Some(unsafe { std::mem::transmute::<*mut c_void, Send>(symbol) })
    });
    let Some(next) = found else { return -1 };
    // SAFETY: the caller's promise, passed on.
    let sent = unsafe { next(socket, data, length, flags) };
    // SAFETY: the caller promises that `data` has `length` bytes; serial ports send a few at a time.
    let is_point = length > 0 && unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) }.contains(&POINT);
    if is_point
        && let Some(listener) = inherited_listener()
        && let Err(e) = serve(&listener, socket)
    {
        eprintln!("fork server: {e}");
        process::exit(GIVE_UP);
    }
    sent
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
    redirect(
        |target| target.ends_with(TERMINAL_MAKER),
        &File::options().read(true).write(true).open("/dev/null")?,
    )?;
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
                    eprintln!("fork server: child: {e}");
                    // SAFETY: ends the process without running Bochs's exit handlers, which belong to the server.
                    unsafe { libc::_exit(GIVE_UP) };
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
    for (variable, name) in [(CONSOLE, "console.log"), (LOG, "emulator.log")] {
        let open = env::var_os(variable).ok_or_else(|| io::Error::other(format!("{variable} is not set")))?;
        redirect(|target| target == Path::new(&open), &File::create(folder.join(name))?)?;
    }
    answer_to_debugger(&folder)?;
    // So that time does not go on before the order is there, and each run of a scenario is the same.
    wait_for_order(&connection)?;
    replace(connection.as_raw_fd(), serial)?;
    thread::spawn(move || end_with_connection(&connection));
    Ok(())
}

/// What Bochs's debugger is told when a signal (SIGINT) takes the machine there: show everything, and end.
const DEBUGGER: &str = "r\nfp\nsreg\ncreg\ninfo cpu\nquit\n";

/// Leaves the process's number in the folder, for whoever wants the registers, and has the debugger read and write files there.
fn answer_to_debugger(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("emulator.pid"), process::id().to_string())?;
    let commands = folder.join("emulator.in");
    fs::write(&commands, DEBUGGER)?;
    replace(File::open(&commands)?.as_raw_fd(), libc::STDIN_FILENO)?;
    replace(
        File::create(folder.join("emulator.out"))?.as_raw_fd(),
        libc::STDOUT_FILENO,
    )
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
