//! Data structures of Identify: 4096 bytes each, filled field by field.

/// Bytes of each of them.
pub const SIZE: usize = 4096;

/// CNS: what Identify is asked for.
pub mod cns {
    /// A namespace.
    pub const NAMESPACE: u32 = 0x00;
    /// The controller.
    pub const CONTROLLER: u32 = 0x01;
    /// The active namespaces from a number on.
    pub const ACTIVE_NAMESPACES: u32 = 0x02;
    /// What identifies a namespace.
    pub const NAMESPACE_DESCRIPTORS: u32 = 0x03;
    /// A namespace, as of an I/O command set.
    pub const IO_NAMESPACE: u32 = 0x05;
    /// The controller, as of an I/O command set.
    pub const IO_CONTROLLER: u32 = 0x06;
    /// The active namespaces of an I/O command set.
    pub const IO_ACTIVE_NAMESPACES: u32 = 0x07;
    /// A namespace, whatever its command set.
    pub const INDEPENDENT_NAMESPACE: u32 = 0x08;
    /// The allocated namespaces from a number on.
    pub const ALLOCATED_NAMESPACES: u32 = 0x10;
    /// An allocated namespace.
    pub const ALLOCATED_NAMESPACE: u32 = 0x11;
    /// The controllers that a namespace is attached to.
    pub const ATTACHED_CONTROLLERS: u32 = 0x12;
    /// The controllers.
    pub const CONTROLLERS: u32 = 0x13;
    /// The I/O command sets.
    pub const IO_COMMAND_SETS: u32 = 0x1C;
}

/// A structure that is being filled.
pub struct Structure(pub [u8; SIZE]);

impl Default for Structure {
    fn default() -> Self {
        Self([0; SIZE])
    }
}

impl Structure {
    /// Puts bytes at `offset`.
    pub fn put(&mut self, offset: usize, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Puts a byte at `offset`.
    pub fn put_u8(&mut self, offset: usize, value: u8) -> &mut Self {
        self.put(offset, [value])
    }

    /// Puts a little-endian number at `offset`.
    pub fn put_u16(&mut self, offset: usize, value: u16) -> &mut Self {
        self.put(offset, value.to_le_bytes())
    }

    /// As [`Structure::put_u16`].
    pub fn put_u32(&mut self, offset: usize, value: u32) -> &mut Self {
        self.put(offset, value.to_le_bytes())
    }

    /// As [`Structure::put_u16`].
    pub fn put_u64(&mut self, offset: usize, value: u64) -> &mut Self {
        self.put(offset, value.to_le_bytes())
    }

    /// Puts text at `offset`, with spaces up to `length`.
    pub fn put_text(&mut self, offset: usize, length: usize, text: &str) -> &mut Self {
        self.0[offset..offset + length].fill(b' ');
        self.put(offset, &text.as_bytes()[..text.len().min(length)])
    }
}
