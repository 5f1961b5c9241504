// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Descriptions of structures and constants: what the C header and the tables of docs/protocol.md are made of, and
//! where the padding of a message is.
//!
//! A structure is defined by the macro `structs!`, a group of constants by `constants!`, each in the file of its
//! subject. The macros keep the comments.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::{arch, error, event, handshake, header, ioctl, limits, msg, vcpu_command, vm_command};

/// A structure of the contract.
#[derive(Debug)]
pub struct Struct {
    /// Its name in Rust.
    pub name: &'static str,
    /// Its name in C, without `struct`.
    pub c_name: &'static str,
    /// What it is: its comment, a line for each line.
    pub doc: &'static str,
    /// Bytes.
    pub size: usize,
    /// Its fields in order.
    pub fields: &'static [Field],
}

/// A field of a structure.
#[derive(Debug)]
pub struct Field {
    /// Its name in Rust, which may end in `_` where C's is a word of Rust.
    pub name: &'static str,
    /// Its type as Rust writes it.
    pub rust_type: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

impl Field {
    /// Its name in C.
    pub fn c_name(&self) -> &'static str {
        self.name.strip_suffix('_').unwrap_or(self.name)
    }

    /// Whether it is padding, which is zero in both directions: its name begins with `pad`.
    pub const fn is_padding(&self) -> bool {
        matches!(self.name.as_bytes(), [b'p', b'a', b'd', ..])
    }
}

impl Struct {
    /// Fields that are padding.
    pub fn padding(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().filter(|field| field.is_padding())
    }

    /// Whether all padding of a structure is zero that these bytes begin with. Bytes that are missing count as zero.
    pub fn padding_is_zero(&self, bytes: &[u8]) -> bool {
        self.padding()
            .flat_map(|field| bytes.iter().skip(field.offset).take(field.size))
            .all(|byte| *byte == 0)
    }
}

/// A structure or a number that stands in messages as it is.
pub trait HasLayout: FromBytes + FromZeros + IntoBytes + Immutable + KnownLayout + Copy {
    /// Its description.
    const LAYOUT: &'static Struct;
}

macro_rules! numbers {
    ($($number:ident)*) => { $(
        impl HasLayout for $number {
            const LAYOUT: &'static Struct = &Struct {
                name: stringify!($number),
                c_name: stringify!($number),
                doc: "",
                size: size_of::<$number>(),
                fields: &[],
            };
        }
    )* };
}

numbers! { u8 u32 }

/// Defines structures. Each has its name in C and its size in bytes behind its own name.
macro_rules! structs {
    ($(
        $(#[doc = $doc:literal])*
        pub struct $rust:ident = $c:ident, $size:literal {
            $( $(#[doc = $field_doc:literal])* pub $field:ident: $type:ty, )*
        }
    )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            #[repr(C)]
            pub struct $rust {
                $( $(#[doc = $field_doc])* pub $field: $type, )*
            }

            impl Default for $rust {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }

            impl $crate::layout::HasLayout for $rust {
                const LAYOUT: &'static $crate::layout::Struct = &$crate::layout::Struct {
                    name: stringify!($rust),
                    c_name: stringify!($c),
                    doc: concat!($($doc, "\n"),*),
                    size: $size,
                    fields: &[$( $crate::layout::Field {
                        name: stringify!($field),
                        rust_type: stringify!($type),
                        doc: concat!($($field_doc, "\n"),*),
                        offset: core::mem::offset_of!($rust, $field),
                        size: size_of::<$type>(),
                    } ),*],
                };
            }

            const _: () = assert!(size_of::<$rust>() == $size);
        )*

        /// The structures of this file, each behind those that it contains.
        pub(crate) const STRUCTS: &[&$crate::layout::Struct] =
            &[$( <$rust as $crate::layout::HasLayout>::LAYOUT ),*];
    };
}
pub(crate) use structs;

/// Constants that belong together: a table of docs/protocol.md.
#[derive(Debug)]
pub struct Group {
    /// Its name, by which that page places it.
    pub name: &'static str,
    /// What they are.
    pub doc: &'static str,
    /// The constants in order.
    pub constants: &'static [Constant],
}

/// A constant of the contract.
#[derive(Debug)]
pub struct Constant {
    /// Its name in Rust.
    pub name: &'static str,
    /// Its name in C.
    pub c_name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Its value as Rust writes it; C can read it where it is a number, or a shift of one.
    pub rust_value: &'static str,
    /// What C has in place of the value, where that is another text.
    pub c_value: Option<&'static str>,
    /// Its value.
    pub value: u64,
}

/// Defines constants, and a [`Group`] of them with the name that comes first. Each has its name in C before it.
macro_rules! constants {
    (
        $(#[doc = $list_doc:literal])*
        $list:ident:
        $(
            $(#[doc = $doc:literal])*
            $c:ident = $name:ident: $type:ty = $value:expr $(, in C $c_value:literal)?;
        )*
    ) => {
        $( $(#[doc = $doc])* pub const $name: $type = $value; )*

        $(#[doc = $list_doc])*
        pub const $list: $crate::layout::Group = $crate::layout::Group {
            name: stringify!($list),
            doc: concat!($($list_doc, "\n"),*),
            constants: &[$( $crate::layout::Constant {
                name: stringify!($name),
                c_name: stringify!($c),
                doc: concat!($($doc, "\n"),*),
                rust_value: stringify!($value),
                c_value: $crate::layout::optional!($($c_value)?),
                value: {
                    let value: $type = $value;
                    value as u64
                },
            } ),*],
        };
    };
}
pub(crate) use constants;

macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}
pub(crate) use optional;

/// A part of the contract, as the C header has it.
#[derive(Debug)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// Its constants.
    pub groups: &'static [Group],
    /// Structures.
    pub structs: &'static [&'static Struct],
}

/// The whole contract but for ids and errors, in an order in which C can read it.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "versions and limits",
        groups: &[limits::VERSIONS, limits::LIMITS],
        structs: &[],
    },
    Section {
        title: "ioctls on the VM's file descriptor",
        groups: &[ioctl::IOCTLS],
        structs: ioctl::STRUCTS,
    },
    Section {
        title: "state of a CPU as <linux/kvm.h> lays it out",
        groups: &[],
        structs: arch::STRUCTS,
    },
    Section {
        title: "headers",
        groups: &[msg::EVENT_MESSAGES, event::ACTIONS],
        structs: header::STRUCTS,
    },
    Section {
        title: "VM commands",
        groups: &[
            crate::Features::FEATURE_BITS,
            crate::PageAccessEntry::PAGE_ACCESS_BITS,
            crate::VcpuRunState::VCPU_STATES,
        ],
        structs: vm_command::STRUCTS,
    },
    Section {
        title: "vCPU commands",
        groups: &[],
        structs: vcpu_command::STRUCTS,
    },
    Section {
        title: "events: data, and data of replies",
        groups: &[event::HYPERCALL_REGISTERS, event::DESCRIPTORS],
        structs: event::STRUCTS,
    },
    Section {
        title: "VMM and tool before HOOK; the kernel never sees it",
        groups: &[],
        structs: handshake::STRUCTS,
    },
];

/// Every structure.
pub fn all_structs() -> impl Iterator<Item = &'static Struct> {
    SECTIONS.iter().flat_map(|section| section.structs.iter().copied())
}

/// Every constant but ids of commands and events, and errors.
pub fn all_constants() -> impl Iterator<Item = &'static Constant> {
    SECTIONS
        .iter()
        .flat_map(|section| section.groups.iter().flat_map(|group| group.constants))
}

const _: () = {
    assert!(limits::MAX_MSRS == 481);
    assert!(limits::MAX_PAGE_ACCESS_ENTRIES == 511);
    assert!(limits::MAX_VCPU_STATES == 1022);
    assert!(limits::MAX_PAYLOAD + size_of::<crate::MsgHdr>() == limits::MAX_MESSAGE);
    assert!(error::ENOSYS == 1000);
};
