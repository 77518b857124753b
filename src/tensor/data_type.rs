//! Element types, named as in the Open Inference Protocol.

use std::fmt;

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the protocol's own names")]
pub enum DataType {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    F64,
    Bytes,
}

/// Every element type with its Open Inference Protocol name and its size in bytes.
const NAMES: [(DataType, &str, usize); 14] = [
    (DataType::Bool, "BOOL", 1),
    (DataType::U8, "UINT8", 1),
    (DataType::U16, "UINT16", 2),
    (DataType::U32, "UINT32", 4),
    (DataType::U64, "UINT64", 8),
    (DataType::I8, "INT8", 1),
    (DataType::I16, "INT16", 2),
    (DataType::I32, "INT32", 4),
    (DataType::I64, "INT64", 8),
    (DataType::F16, "FP16", 2),
    (DataType::BF16, "BF16", 2),
    (DataType::F32, "FP32", 4),
    (DataType::F64, "FP64", 8),
    (DataType::Bytes, "BYTES", 0),
];

impl DataType {
    /// Returns the protocol's name of this type, such as `FP32`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Returns the size of one element in bytes; 0 for `BYTES`, whose elements vary in length.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// Returns the type with the protocol's name `name`, or `None` if no type has it.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, usize) {
        NAMES.iter().find(|row| row.0 == self).expect("NAMES lists every variant")
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_type() {
        for (data_type, name, _) in NAMES {
            assert_eq!(DataType::from_name(name), Some(data_type));
            assert_eq!(data_type.to_string(), name);
        }
        assert_eq!(DataType::from_name("FLOAT"), None);
    }
}
