//! Small GGUF files, written for tests.

/// Value of a key, as bytes with its type.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    kind: u32,
    bytes: Vec<u8>,
}

/// Tensor of a file: its name, extents with the innermost first, ggml's type, and bytes.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) extents: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
    /// Offset behind the start of the data, if not the next free one.
    pub(crate) offset: Option<u64>,
}

/// A file in the making.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) pairs: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Stored>,
}

impl Value {
    /// Returns a value of the type `kind` with the bytes `bytes`.
    pub(crate) fn raw(kind: u32, bytes: &[u8]) -> Self {
        Self { kind, bytes: bytes.to_vec() }
    }

    pub(crate) fn number(value: u32) -> Self {
        Self::raw(4, &value.to_le_bytes())
    }

    pub(crate) fn float(value: f32) -> Self {
        Self::raw(6, &value.to_le_bytes())
    }

    pub(crate) fn truth(value: bool) -> Self {
        Self::raw(7, &[u8::from(value)])
    }

    pub(crate) fn text(value: &str) -> Self {
        Self { kind: 8, bytes: text(value) }
    }

    /// Returns a list of values of the type `kind`.
    pub(crate) fn list(kind: u32, values: &[Self]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(&value.bytes));
        Self { kind: 9, bytes }
    }
}

impl Written {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, pairs: Vec::new(), tensors: Vec::new() }
    }

    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.pairs.push((key.to_owned(), value));
        self
    }

    pub(crate) fn tensor(mut self, name: &str, extents: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.tensors.push(Stored {
            name: name.to_owned(),
            extents: extents.to_vec(),
            kind,
            bytes: bytes.to_vec(),
            offset: None,
        });
        self
    }

    /// Returns the file's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            file.extend(text(key));
            file.extend(value.kind.to_le_bytes());
            file.extend(&value.bytes);
        }
        let mut content = Vec::new();
        for tensor in &self.tensors {
            file.extend(text(&tensor.name));
            file.extend(u32::try_from(tensor.extents.len()).expect("few axes").to_le_bytes());
            tensor.extents.iter().for_each(|extent| file.extend(extent.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            content.resize(content.len().next_multiple_of(self.alignment), 0);
            file.extend(tensor.offset.unwrap_or(content.len() as u64).to_le_bytes());
            content.extend(&tensor.bytes);
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(content);
        file
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}
