// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages survive any cutting of the stream, and a bad stream is named for what it is.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::io::{self, Read};

use kvmi_lab_control::{
    Backend, FromL1, LineReader, LoadedModule, MAX_LINE_BYTES, ReadError, SNAPSHOT, ToL1, Verdict, encode,
};
use proptest::prelude::*;

/// A stream that hands out its chunks one by one, with a timeout between them.
struct Chunks(VecDeque<Vec<u8>>, bool);

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 && !self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(mut chunk) = self.0.pop_front() else {
            return Ok(0);
        };
        let n = chunk.len().min(into.len());
        into[..n].copy_from_slice(&chunk[..n]);
        if n < chunk.len() {
            self.0.push_front(chunk.split_off(n));
        }
        Ok(n)
    }
}

fn examples() -> Vec<FromL1> {
    vec![
        FromL1::Ready {
            backend: Backend::Svm,
            kernel: "6.12.1".into(),
        },
        FromL1::Started {
            scenario: "a::b".into(),
        },
        FromL1::Stage {
            name: "hook".into(),
            deadline_ms: 5000,
        },
        FromL1::Log {
            source: "vmm".into(),
            text: "two\nlines and \u{6}".into(),
        },
        FromL1::Transcript {
            text: "> GET_VERSION".into(),
        },
        FromL1::Measure {
            name: "exits".into(),
            value: 1.5,
            unit: "instructions".into(),
        },
        FromL1::Done {
            verdict: Verdict::Fail { message: "no".into() },
        },
        FromL1::Done {
            verdict: Verdict::Skip {
                reason: "one CPU".into(),
            },
        },
        FromL1::Done { verdict: Verdict::Pass },
        FromL1::Symbols {
            text: "ffffffff81000000 T _text\n".into(),
        },
        FromL1::Prompt {
            guest: "counter".into(),
            vcpus: 2,
            vmm: 71,
            introspection: true,
            modules: vec![LoadedModule {
                file: "kvm.ko".into(),
                sections: vec![(".text".into(), 0xffff_ffff_c000_0000)],
            }],
        },
    ]
}

#[test]
fn the_form_on_the_wire_is_fixed() {
    let lines: String = examples().iter().map(encode).collect();
    assert_eq!(
        lines,
        concat!(
            r#"{"type":"ready","backend":"svm","kernel":"6.12.1"}"#,
            "\n",
            r#"{"type":"started","scenario":"a::b"}"#,
            "\n",
            r#"{"type":"stage","name":"hook","deadline_ms":5000}"#,
            "\n",
            r#"{"type":"log","source":"vmm","text":"two\nlines and \u0006"}"#,
            "\n",
            r#"{"type":"transcript","text":"> GET_VERSION"}"#,
            "\n",
            r#"{"type":"measure","name":"exits","value":1.5,"unit":"instructions"}"#,
            "\n",
            r#"{"type":"done","verdict":{"is":"fail","message":"no"}}"#,
            "\n",
            r#"{"type":"done","verdict":{"is":"skip","reason":"one CPU"}}"#,
            "\n",
            r#"{"type":"done","verdict":{"is":"pass"}}"#,
            "\n",
            r#"{"type":"symbols","text":"ffffffff81000000 T _text\n"}"#,
            "\n",
            r#"{"type":"prompt","guest":"counter","vcpus":2,"vmm":71,"introspection":true,"modules":[{"file":"kvm.ko","sections":[[".text",18446744072635809792]]}]}"#,
            "\n",
        )
    );
    let shell = ToL1::Shell {
        rows: 24,
        columns: 80,
        terminal: "xterm".into(),
        symbols: false,
    };
    assert_eq!(
        encode(&shell),
        "{\"type\":\"shell\",\"rows\":24,\"columns\":80,\"terminal\":\"xterm\",\"symbols\":false}\n"
    );
    assert_eq!(
        encode(&ToL1::Run {
            scenario: "a::b".into(),
            seed: u64::MAX
        }),
        "{\"type\":\"run\",\"scenario\":\"a::b\",\"seed\":18446744073709551615}\n"
    );
}

#[test]
fn the_point_stands_between_lines() {
    let mut bytes = encode(&examples()[0]).into_bytes();
    bytes.push(SNAPSHOT);
    bytes.extend(encode(&examples()[1]).bytes());
    let mut reader = LineReader::new(&bytes[..]);
    assert_eq!(reader.message().unwrap(), Some(examples()[0].clone()));
    assert!(reader.snapshot().unwrap());
    assert_eq!(reader.message().unwrap(), Some(examples()[1].clone()));
    assert!(!reader.snapshot().unwrap());
    assert!(matches!(
        LineReader::new(&b"{}"[..]).snapshot(),
        Err(ReadError::NotThePoint(b'{'))
    ));
}

#[test]
fn a_truncated_line_is_told_from_an_ended_stream() {
    let whole = encode(&examples()[1]);
    let cut = &whole.as_bytes()[..10];
    match LineReader::new(cut).message::<FromL1>() {
        Err(ReadError::Truncated { bytes: 10, start }) => assert_eq!(start, "{\"type\":\"s"),
        other => panic!("{other:?}"),
    }
    assert!(LineReader::new(&b""[..]).message::<FromL1>().unwrap().is_none());
}

#[test]
fn an_endless_line_is_refused() {
    let endless = io::repeat(b'x').take(10 * MAX_LINE_BYTES as u64);
    assert!(matches!(
        LineReader::new(endless).message::<FromL1>(),
        Err(ReadError::Oversized { .. })
    ));
    let mut long = vec![b'x'; MAX_LINE_BYTES + 1];
    long.push(b'\n');
    assert!(matches!(
        LineReader::new(&long[..]).message::<FromL1>(),
        Err(ReadError::Oversized { .. })
    ));
}

#[test]
fn after_a_garbled_line_the_next_one_counts() {
    let mut bytes = b"\xff[  1.0] oops\n".to_vec();
    bytes.extend(encode(&examples()[8]).bytes());
    let mut reader = LineReader::new(&bytes[..]);
    assert!(matches!(reader.message::<FromL1>(), Err(ReadError::Garbled { .. })));
    assert_eq!(reader.message().unwrap(), Some(examples()[8].clone()));
}

proptest! {
    #[test]
    fn any_cutting_of_the_stream_gives_the_same_messages(sizes in prop::collection::vec(1usize..40, 1..60)) {
        let mut bytes: Vec<u8> = examples().iter().map(encode).collect::<String>().into_bytes();
        let mut chunks = VecDeque::new();
        let mut sizes = sizes.into_iter().cycle();
        while !bytes.is_empty() {
            let rest = bytes.split_off(sizes.next().unwrap().min(bytes.len()));
            chunks.push_back(std::mem::replace(&mut bytes, rest));
        }
        let mut reader = LineReader::new(Chunks(chunks, false));
        let mut got = Vec::new();
        loop {
            match reader.message::<FromL1>() {
                Ok(Some(message)) => got.push(message),
                Ok(None) => break,
                Err(e) => prop_assert!(e.is_timeout(), "{e}"),
            }
        }
        prop_assert_eq!(got, examples());
    }
}
