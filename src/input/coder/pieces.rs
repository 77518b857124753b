//! Bytes that each token stands for.

use std::sync::LazyLock;

/// Character of a piece for each byte, as GPT-2 writes them: printable ones stand for themselves.
static BYTE_CHARACTERS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256_u32;
    std::array::from_fn(|byte| {
        let byte = u8::try_from(byte).expect("256 bytes");
        if is_plain(byte) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("below the surrogates")
    })
});

/// Bytes of all tokens of a vocabulary, by id.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Offset of the end of each token in `bytes`.
    ends: Vec<u32>,
    longest: usize,
}

impl Pieces {
    /// Adds the bytes of the next token.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.longest = self.longest.max(piece.len());
    }

    /// Returns the bytes of the token `id`; none for an unknown one.
    pub(super) fn of(&self, id: u32) -> &[u8] {
        let Some(end) = self.ends.get(id as usize) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        self.bytes.get(start as usize..*end as usize).unwrap_or_default()
    }

    /// Returns the number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the number of bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// Returns the bytes of a piece in GPT-2's characters, or its own bytes if it has others.
pub(super) fn from_byte_characters(piece: &str) -> Vec<u8> {
    let byte = |character: char| -> Option<u8> {
        let place = match u32::from(character) {
            code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
            code @ 0x100..=0x143 => {
                let plain = BYTE_CHARACTERS.iter().position(|own| u32::from(*own) == code)?;
                u32::try_from(plain).ok()?
            }
            _ => return None,
        };
        u8::try_from(place).ok()
    };
    let bytes: Option<Vec<u8>> = piece.chars().map(byte).collect();
    bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
}

/// Returns the bytes of a piece of SentencePiece: `▁` is a space, `<0x0A>` a byte.
pub(super) fn from_sentence_piece(piece: &str) -> Vec<u8> {
    match byte_of(piece) {
        Some(byte) => vec![byte],
        None => piece.replace('\u{2581}', " ").into_bytes(),
    }
}

/// Returns the byte of a piece such as `<0x0A>`, or None for any other.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=255_u8 {
            let piece = BYTE_CHARACTERS[usize::from(byte)].to_string();
            assert_eq!(from_byte_characters(&piece), [byte], "{piece}");
        }
        assert_eq!(from_byte_characters("Ġthe"), b" the");
        assert_eq!(from_byte_characters("ĊĊ"), b"\n\n");
        assert_eq!(from_byte_characters("日"), "日".as_bytes());
    }

    #[test]
    fn pieces_of_sentence_piece_are_texts_or_bytes() {
        assert_eq!(from_sentence_piece("▁the"), b" the");
        assert_eq!(from_sentence_piece("<0xE2>"), [0xE2]);
        assert_eq!(from_sentence_piece("<0xE>"), b"<0xE>");
    }

    #[test]
    fn pieces_are_found_by_id() {
        let mut pieces = Pieces::default();
        for piece in [&b"a"[..], b"", b"bcd"] {
            pieces.push(piece);
        }
        assert_eq!((pieces.of(0), pieces.of(1), pieces.of(2)), (&b"a"[..], &b""[..], &b"bcd"[..]));
        assert_eq!((pieces.of(3), pieces.len(), pieces.longest()), (&b""[..], 3, 3));
    }
}
