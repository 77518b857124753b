//! Reading numbers and texts from bytes, never beyond their end.

use bytes::Bytes;

/// Position in the bytes of a file.
#[derive(Debug)]
pub(super) struct Cursor<'f> {
    bytes: &'f Bytes,
    at: usize,
}

impl<'f> Cursor<'f> {
    /// Creates a cursor at the start of `bytes`.
    pub(super) fn new(bytes: &'f Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the number of bytes before the cursor.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Returns the number of all bytes.
    pub(super) fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Returns the bytes from `start` up to the cursor.
    pub(super) fn since(&self, start: usize) -> Bytes {
        self.bytes.slice(start..self.at)
    }

    /// Checks that there may be `count` items of at least `least` bytes each.
    pub(super) fn check_room(&self, items: &str, count: u64, least: u64) -> Result<(), String> {
        let left = self.left();
        match count.checked_mul(least) {
            Some(needed) if needed <= left => Ok(()),
            _ => Err(format!("it has {count} {items}, but {left} bytes are left")),
        }
    }

    /// Reads the next `length` bytes.
    pub(super) fn take(&mut self, length: u64) -> Result<&'f [u8], String> {
        let left = self.left();
        let beyond = || format!("it ends where {length} bytes are expected, {left} are left");
        let length = usize::try_from(length).ok().filter(|length| *length as u64 <= left);
        let end = self.at + length.ok_or_else(beyond)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Reads the next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    /// Reads a number of 4 bytes.
    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads a number of 8 bytes.
    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a length and a text.
    pub(super) fn text(&mut self) -> Result<&'f str, String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|error| format!("a text is not UTF-8: {error}"))
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }
}
