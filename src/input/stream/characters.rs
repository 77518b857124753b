//! Whole characters out of bytes that come in pieces.

/// Bytes that are not yet a whole character.
#[derive(Debug, Default)]
pub(super) struct Characters {
    /// Start of a character; at most three bytes.
    held: Vec<u8>,
}

impl Characters {
    /// Adds `bytes` and returns the characters that are whole; bytes that belong to none are
    /// replaced.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.held.len());
        let mut num_held = 0;
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let is_last = chunks.peek().is_none();
            match chunk.invalid() {
                [] => {}
                rest if is_last && is_start(rest) => num_held = rest.len(),
                _ => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        self.held.drain(..self.held.len() - num_held);
        text
    }

    /// Returns what is left: a replacement for a character that is not whole, or nothing.
    pub(super) fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }
}

/// Returns whether more bytes can make a character of `bytes`.
fn is_start(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
