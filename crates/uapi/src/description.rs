//! What this crate says of each structure and constant, as data: for what compares it with Linux's own headers, as
//! `tests/header.rs` does.

/// Every header of which something is here.
pub const HEADERS: &[Header] = &[
    crate::iommufd::HEADER,
    crate::vfio::HEADER,
    crate::kvm::HEADER,
    crate::iommufd::selftest::HEADER,
    crate::ioasid::HEADER,
];

/// What of a header of Linux is here.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Where it is: in the folder of headers for programs; for a header that is not for them, in Linux's sources; our
    /// own, in this crate.
    pub path: &'static str,
    /// Its structures, file by file.
    pub layouts: &'static [&'static [Layout]],
    /// Its constants, file by file.
    pub constants: &'static [&'static [Constant]],
}

/// A structure.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Its name in C, without `struct`. A structure in a union that has no name itself is `structure.member`.
    pub c_name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Name, as it is here, and offset of each field.
    pub fields: &'static [(&'static str, usize)],
}

/// A constant.
#[derive(Debug, Clone, Copy)]
pub struct Constant {
    /// Its name in C.
    pub c_name: &'static str,
    /// Its value.
    pub value: u64,
}

/// The name in C with which the documentation of a constant begins, in backticks.
pub(crate) const fn c_name(documentation: &'static str) -> &'static str {
    let bytes = documentation.as_bytes();
    assert!(bytes[0] == b' ' && bytes[1] == b'`', "the documentation begins with the name in C");
    let mut end = 2;
    while bytes[end] != b'`' {
        end += 1;
    }
    documentation.split_at(end).0.split_at(2).1
}

/// Asserts a structure's size and the offset of each of its fields, and makes `LAYOUT` of them.
///
/// Each file lists these in its `LAYOUTS`. The compiler warns of one that is not in it, as nothing uses it then.
macro_rules! layout {
    ($name:ident = $c_name:literal, $size:literal, { $($field:ident: $offset:literal),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };

        impl $name {
            pub(crate) const LAYOUT: $crate::description::Layout = $crate::description::Layout {
                c_name: $c_name,
                size: $size,
                fields: &[$((stringify!($field), $offset)),*],
            };
        }
    };
}
pub(crate) use layout;

/// The constants of a file, and `CONSTANTS`, a list of them. Their documentation begins with the name in C.
macro_rules! constants {
    ($($(#[doc = $documentation:literal])+ pub const $name:ident: $kind:ty = $value:expr;)*) => {
        $(
            $(#[doc = $documentation])+
            pub const $name: $kind = $value;
        )*

        pub(crate) const CONSTANTS: &[$crate::description::Constant] = &[$(
            $crate::description::Constant {
                c_name: $crate::description::c_name(concat!($($documentation),+)),
                value: $name as u64,
            },
        )*];
    };
}
pub(crate) use constants;
