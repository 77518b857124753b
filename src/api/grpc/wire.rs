//! The fields of an encoded message (Protocol Buffers, "Encoding"), without decoding them.

use crate::api::error::ApiError;

/// Field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    /// Number of the field.
    pub(super) number: usize,
    /// Content of the field.
    pub(super) payload: Payload<'a>,
}

/// Form of a field's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload<'a> {
    /// A number.
    Number,
    /// A text, bytes, a message, or numbers in a row.
    Bytes(&'a [u8]),
}

/// Size of the numbers in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Variable number of bytes per number; all but the last byte have their highest bit set.
    Varying,
    /// Fixed number of bytes per number.
    Fixed(usize),
}

/// Fields of a message in their order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Returns the fields of `message`.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn take_number(&mut self) -> Option<usize> {
        prost::decode_length_delimiter(&mut self.0).ok()
    }

    fn skip(&mut self, count: usize) -> Option<&'a [u8]> {
        let (skipped, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(skipped)
    }

    fn take_field(&mut self) -> Option<Field<'a>> {
        let key = self.take_number()?;
        let payload = match key & 7 {
            0 => self.take_number().map(|_| Payload::Number),
            1 => self.skip(8).map(|_| Payload::Number),
            2 => {
                let count = self.take_number()?;
                self.skip(count).map(Payload::Bytes)
            }
            5 => self.skip(4).map(|_| Payload::Number),
            // Groups are not read; no message here has one.
            _ => None,
        };
        Some(Field { number: key >> 3, payload: payload? })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, ApiError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let left = self.0.len();
        Some(self.take_field().ok_or_else(|| {
            self.0 = &[];
            let reason = format!("the field at {left} bytes before its end is malformed");
            ApiError::Message { reason }
        }))
    }
}

impl Payload<'_> {
    /// Returns the number of numeric elements in this part of a repeated field.
    pub(super) fn num_elements(self, width: Width) -> usize {
        match (self, width) {
            (Self::Number, _) => 1,
            (Self::Bytes(row), Width::Fixed(size)) => row.len() / size,
            (Self::Bytes(row), Width::Varying) => row.iter().filter(|byte| **byte < 0x80).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, ApiError> {
        Fields::of(message).collect()
    }

    #[test]
    fn fields_are_found_by_number() {
        let message = b"\x0a\x02ab\x10\x96\x01\x1d\0\0\0\0\x21\0\0\0\0\0\0\0\0\xaa\x01\0";
        let found = fields(message).expect("well-formed");
        let expected = [
            (1, Payload::Bytes(b"ab")),
            (2, Payload::Number),
            (3, Payload::Number),
            (4, Payload::Number),
            (21, Payload::Bytes(b"")),
        ];
        let expected = expected.map(|(number, payload)| Field { number, payload });
        assert_eq!(found, expected);
    }

    #[test]
    fn malformed_messages_are_refused_where_they_are() {
        let endless = [0xff; 20];
        for message in
            [&b"\x0a"[..], b"\x0a\x05ab", b"\x15\0\0", b"\x0b\x0c", b"\x0f", &endless, b"\x08"]
        {
            let found: Vec<_> = Fields::of(message).collect();
            assert_eq!(found.len(), 1, "{message:?}");
            assert!(found[0].is_err(), "{message:?}");
        }
    }

    #[test]
    fn numbers_in_a_row_are_counted() {
        assert_eq!(Payload::Number.num_elements(Width::Varying), 1);
        assert_eq!(Payload::Bytes(&[1, 2, 0x80, 1]).num_elements(Width::Varying), 3);
        assert_eq!(Payload::Bytes(&[0; 12]).num_elements(Width::Fixed(4)), 3);
    }
}
