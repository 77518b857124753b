//! Values of a GGUF file's keys.

use std::fmt;

use bytes::Bytes;

use super::cursor::Cursor;

/// Deepest nesting of lists.
const MAX_DEPTH: usize = 4;

/// Most characters of a text that a message shows.
const MAX_SHOWN_CHARS: usize = 80;

/// Value of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Unsigned integer of any size.
    Unsigned(u64),
    /// Signed integer of any size.
    Signed(i64),
    /// Floating-point number of either size.
    Float(f64),
    /// Truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// List of values of one type.
    List(GgufList),
}

/// List of values of one type, which stays in the mapped file.
#[derive(Clone, PartialEq, Eq)]
pub struct GgufList {
    element: Kind,
    count: usize,
    bytes: Bytes,
}

/// Type of a value, with the file's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

/// All types, by the file's numbers.
const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::List,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl GgufValue {
    /// Reads a type and a value of it.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let kind = Kind::read(cursor)?;
        Self::of_kind(kind, cursor)
    }

    fn of_kind(kind: Kind, cursor: &mut Cursor<'_>) -> Result<Self, String> {
        Ok(match kind {
            Kind::U8 => Self::Unsigned(u8::from_le_bytes(cursor.array()?).into()),
            Kind::I8 => Self::Signed(i8::from_le_bytes(cursor.array()?).into()),
            Kind::U16 => Self::Unsigned(u16::from_le_bytes(cursor.array()?).into()),
            Kind::I16 => Self::Signed(i16::from_le_bytes(cursor.array()?).into()),
            Kind::U32 => Self::Unsigned(cursor.u32()?.into()),
            Kind::I32 => Self::Signed(i32::from_le_bytes(cursor.array()?).into()),
            Kind::F32 => Self::Float(f32::from_le_bytes(cursor.array()?).into()),
            Kind::Bool => Self::Bool(truth(cursor.array::<1>()?[0])?),
            Kind::Text => Self::Text(cursor.text()?.to_owned()),
            Kind::List => Self::List(GgufList::read(cursor, 1)?),
            Kind::U64 => Self::Unsigned(cursor.u64()?),
            Kind::I64 => Self::Signed(i64::from_le_bytes(cursor.array()?)),
            Kind::F64 => Self::Float(f64::from_le_bytes(cursor.array()?)),
        })
    }

    /// Returns the value if it is an integer that is not negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Returns the value if it is a floating-point number.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the value if it is a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the value if it is a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the value if it is a list.
    pub fn as_list(&self) -> Option<&GgufList> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }
}

impl fmt::Display for GgufValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(formatter, "{value}"),
            Self::Signed(value) => write!(formatter, "{value}"),
            Self::Float(value) => write!(formatter, "{value}"),
            Self::Bool(value) => write!(formatter, "{value}"),
            Self::Text(text) => {
                text.chars().take(MAX_SHOWN_CHARS).try_for_each(|c| write!(formatter, "{c}"))
            }
            Self::List(list) => write!(formatter, "a list of {}", list.count),
        }
    }
}

impl GgufList {
    fn read(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err(format!("lists are nested deeper than {MAX_DEPTH}"));
        }
        let element = Kind::read(cursor)?;
        let count = cursor.u64()?;
        cursor.check_room("elements", count, element.min_bytes())?;
        let start = cursor.at();
        match element {
            Kind::Text => (0..count).try_for_each(|_| cursor.text().map(drop))?,
            Kind::List => (0..count).try_for_each(|_| Self::read(cursor, depth + 1).map(drop))?,
            Kind::Bool => cursor.take(count)?.iter().try_for_each(|b| truth(*b).map(drop))?,
            _ => drop(cursor.take(count * element.min_bytes())?),
        }
        let count = usize::try_from(count).map_err(|_| "a list is too long".to_owned())?;
        Ok(Self { element, count, bytes: cursor.since(start) })
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the elements if they are texts.
    pub fn texts(&self) -> Option<Vec<&str>> {
        let is_text = self.element == Kind::Text || self.count == 0;
        let mut rest = self.bytes.get(..).filter(|_| is_text)?;
        let mut texts = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            let (text, after) = after.split_at_checked(length)?;
            texts.push(std::str::from_utf8(text).ok()?);
            rest = after;
        }
        Some(texts)
    }

    /// Returns the elements, or `None` if they are lists.
    pub fn values(&self) -> Option<Vec<GgufValue>> {
        let mut cursor = Cursor::new(&self.bytes);
        let read = |_| GgufValue::of_kind(self.element, &mut cursor).ok();
        match self.element {
            Kind::List => None,
            _ => (0..self.count).map(read).collect(),
        }
    }
}

impl fmt::Debug for GgufList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[{:?}; {}]", self.element, self.count)
    }
}

impl Kind {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let number = cursor.u32()?;
        let kind = usize::try_from(number).ok().and_then(|number| KINDS.get(number)).copied();
        kind.ok_or_else(|| format!("a value has the type {number}, but 0 to 12 are known"))
    }

    /// Returns the least size of a value in bytes, which is its size if it is a number.
    fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::List => 12,
        }
    }
}

/// Returns the truth value that a byte means.
fn truth(byte: u8) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("a truth value is {other}, but 0 or 1 is needed")),
    }
}
