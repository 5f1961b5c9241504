// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Section 1 of `docs/protocol.md`: its bytes are those of the types, and its C program says them. And the number in
//! docs/use.md that frees a VM.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, iter};

use kvmi_uapi::event::{self, Cr, CrReply};
use kvmi_uapi::{
    ErrorCode, EventHdr, Features, GetVersionReply, MAX_PAYLOAD, MsgHdr, VERSION, VcpuControlCr, VcpuControlEvents,
    VcpuEvent, VcpuEventReply, VcpuHdr, msg,
};
use zerocopy::{Immutable, IntoBytes};

/// A message of the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    /// Who says it, and what it is: the heading of the page's lines.
    title: String,
    bytes: Vec<u8>,
}

fn manifest(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The block of code behind a marker of the page.
fn block(marker: &str) -> String {
    let page = fs::read_to_string(manifest("../docs/protocol.md")).expect("docs/protocol.md is there");
    let marker = format!("<!-- {marker}: uapi/tests/overview.rs -->\n```");
    let (_, behind) = page.split_once(&marker).expect("the page has the marker");
    let (_language, code) = behind.split_once('\n').expect("lines follow");
    let (code, _) = code.split_once("\n```").expect("the block ends");
    format!("{code}\n")
}

/// The exchange as the page has it. Lines of bytes are indented; what is left out counts as zeroes.
fn exchange_of_the_page() -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    for line in block("exchange").lines().filter(|line| !line.is_empty()) {
        let Some(line) = line.strip_prefix("  ") else {
            all.push(Said {
                title: line.to_owned(),
                bytes: Vec::new(),
            });
            continue;
        };
        let said = all.last_mut().expect("a heading stands before bytes");
        let (bytes, _meaning) = line.split_once("  ").expect("two spaces stand behind the bytes");
        match bytes.strip_prefix('(').and_then(|rest| rest.strip_suffix(" bytes)")) {
            Some(number) => said.bytes.extend(iter::repeat_n(0, number.parse().expect("a number"))),
            None => said.bytes.extend(
                bytes
                    .split(' ')
                    .map(|byte| u8::from_str_radix(byte, 16).expect("two hex digits")),
            ),
        }
    }
    all
}

/// A message: its header, and these parts as payload.
fn said(title: &str, id: u16, seq: u32, payload: &[&dyn AsBytes]) -> Said {
    let payload: Vec<u8> = payload.iter().flat_map(|part| part.bytes()).collect();
    let size = u16::try_from(payload.len()).expect("a small message");
    let mut bytes = MsgHdr { id, size, seq }.as_bytes().to_vec();
    bytes.extend(payload);
    Said {
        title: title.to_owned(),
        bytes,
    }
}

trait AsBytes {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: IntoBytes + Immutable> AsBytes for T {
    fn bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}

/// The same exchange, made of the types.
fn exchange_of_the_types() -> Vec<Said> {
    let none = ErrorCode::default();
    let version = GetVersionReply {
        version: VERSION,
        max_msg_size: u32::try_from(MAX_PAYLOAD).expect("fits"),
        features: Features {
            singlestep: 1,
            extension: kvmi_uapi::EXTENSION_LEVEL,
            // Of a host with nested page tables.
            access: 7,
            ..Features::default()
        },
    };
    let control_events = VcpuControlEvents {
        event_id: event::CR,
        enable: 1,
        ..VcpuControlEvents::default()
    };
    let control_cr = VcpuControlCr {
        cr: 3,
        enable: 1,
        ..VcpuControlCr::default()
    };
    let stopped = VcpuEvent {
        size: u16::try_from(size_of::<VcpuEvent>()).expect("fits"),
        ..VcpuEvent::default()
    };
    let cr = Cr {
        cr: 3,
        old_value: 0x1000,
        new_value: 0x2000,
        ..Cr::default()
    };
    let of_cr = EventHdr {
        event: event::CR,
        ..EventHdr::default()
    };
    let agrees = VcpuEventReply {
        action: event::CONTINUE,
        event: u8::try_from(event::CR).expect("fits"),
        ..VcpuEventReply::default()
    };
    let vcpu = VcpuHdr::default();
    vec![
        said("tool: GET_VERSION", msg::GET_VERSION, 1, &[]),
        said("kernel: reply to GET_VERSION", msg::GET_VERSION, 1, &[&none, &version]),
        said(
            "tool: VCPU_CONTROL_EVENTS",
            msg::VCPU_CONTROL_EVENTS,
            2,
            &[&vcpu, &control_events],
        ),
        said(
            "kernel: reply to VCPU_CONTROL_EVENTS",
            msg::VCPU_CONTROL_EVENTS,
            2,
            &[&none],
        ),
        said("tool: VCPU_CONTROL_CR", msg::VCPU_CONTROL_CR, 3, &[&vcpu, &control_cr]),
        said("kernel: reply to VCPU_CONTROL_CR", msg::VCPU_CONTROL_CR, 3, &[&none]),
        said("kernel: vCPU event CR", msg::VCPU_EVENT, 1, &[&of_cr, &stopped, &cr]),
        said(
            "tool: reply to the event",
            msg::VCPU_EVENT,
            1,
            &[&vcpu, &agrees, &CrReply { new_val: 0x2000 }],
        ),
    ]
}

#[test]
fn the_bytes_are_those_of_the_types() {
    let (page, types) = (exchange_of_the_page(), exchange_of_the_types());
    for (page, types) in page.iter().zip(&types) {
        assert_eq!(page, types, "docs/protocol.md, 1.2, is stale");
    }
    assert_eq!(
        page.len(),
        types.len(),
        "docs/protocol.md, 1.2, has another number of messages"
    );
}

/// The Python that frees a VM has the ioctl's number in it.
/// Compiles the page's program as it is, and as a program that has `watch()` speak through its standard input.
#[test]
fn the_program_says_these_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let compile = |name: &str, text: &str| {
        let source = folder.path().join(name);
        fs::write(&source, text).unwrap();
        let program = source.with_extension("");
        let out = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-I"])
            .arg(manifest("include"))
            .arg("-o")
            .args([&program, &source])
            .output()
            .expect("cc runs (install gcc)");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        program
    };
    compile("watch_cr3.c", &block("program"));
    let spoken =
        "#define main shown\n#include \"watch_cr3.c\"\n#undef main\nint main(void)\n{\n\twatch(0);\n\treturn 0;\n}\n";
    let program = compile("spoken.c", spoken);

    let (mut kernel, tool) = UnixStream::pair().unwrap();
    kernel.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let child = Command::new(program)
        .stdin(OwnedFd::from(tool))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for said in exchange_of_the_page() {
        if said.title.starts_with("kernel: ") {
            kernel.write_all(&said.bytes).unwrap();
            continue;
        }
        let mut bytes = vec![0; said.bytes.len()];
        kernel.read_exact(&mut bytes).expect("the program says something");
        assert_eq!(bytes, said.bytes, "{}", said.title);
    }
    drop(kernel);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", out.status);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "vCPU 0: CR3 0x1000 -> 0x2000\n");
}
