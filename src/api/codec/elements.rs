//! The `data` of a JSON tensor: a flat or nested array of numbers, booleans or strings. It is read
//! without a tree of values.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, SeqAccess, Visitor};

/// Deepest nesting of `data`, and so the highest rank of a tensor.
pub(crate) const MAX_RANK: usize = 8;

/// Elements of a tensor in their JSON form; the datatype may be read after them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Elements {
    /// The elements in row-major order.
    pub(crate) values: Values,
    extents: [Option<usize>; MAX_RANK],
    leaf_depth: Option<usize>,
}

/// Elements of one kind.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Values {
    /// No elements, and so no kind.
    #[default]
    Empty,
    /// Integers of 64 bits.
    Integers(Vec<i64>),
    /// Numbers, of which at least one is not an integer of 64 bits.
    Floats(Vec<f64>),
    /// Booleans.
    Booleans(Vec<bool>),
    /// Strings.
    Texts(Vec<Vec<u8>>),
}

impl Elements {
    /// Returns the extent of each level of nesting, outermost first.
    pub(crate) fn extents(&self) -> Vec<usize> {
        self.extents.iter().map_while(|extent| *extent).collect()
    }

    fn num_levels(&self) -> usize {
        self.extents.iter().flatten().count()
    }
}

impl Values {
    /// Returns the number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Booleans(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    fn push_integer(&mut self, value: i64) -> Result<(), &'static str> {
        match self {
            Self::Empty => *self = Self::Integers(vec![value]),
            Self::Integers(values) => values.push(value),
            Self::Floats(values) => values.push(to_float(value)),
            Self::Booleans(_) | Self::Texts(_) => return Err(MIXED),
        }
        Ok(())
    }

    fn push_float(&mut self, value: f64) -> Result<(), &'static str> {
        match self {
            Self::Empty => *self = Self::Floats(vec![value]),
            Self::Floats(values) => values.push(value),
            Self::Integers(values) => {
                let mut floats: Vec<f64> = values.iter().map(|value| to_float(*value)).collect();
                floats.push(value);
                *self = Self::Floats(floats);
            }
            Self::Booleans(_) | Self::Texts(_) => return Err(MIXED),
        }
        Ok(())
    }

    fn push_boolean(&mut self, value: bool) -> Result<(), &'static str> {
        match self {
            Self::Empty => *self = Self::Booleans(vec![value]),
            Self::Booleans(values) => values.push(value),
            Self::Integers(_) | Self::Floats(_) | Self::Texts(_) => return Err(MIXED),
        }
        Ok(())
    }

    fn push_text(&mut self, value: Vec<u8>) -> Result<(), &'static str> {
        match self {
            Self::Empty => *self = Self::Texts(vec![value]),
            Self::Texts(values) => values.push(value),
            Self::Integers(_) | Self::Floats(_) | Self::Booleans(_) => return Err(MIXED),
        }
        Ok(())
    }
}

const MIXED: &str = "`data` mixes strings, numbers and booleans";
const RAGGED: &str =
    "`data` is ragged: the arrays of one level of nesting differ in length or depth";

#[expect(clippy::cast_precision_loss, reason = "only FP32 tensors take mixed numbers")]
fn to_float(value: i64) -> f64 {
    value as f64
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut elements = Self::default();
        Level { elements: &mut elements, depth: 0 }.deserialize(deserializer)?;
        if elements.leaf_depth.is_some_and(|depth| depth != elements.num_levels()) {
            return Err(de::Error::custom(RAGGED));
        }
        Ok(elements)
    }
}

/// One level of nesting: an array or, below the outermost level, an element.
struct Level<'a> {
    elements: &'a mut Elements,
    depth: usize,
}

impl Level<'_> {
    fn add<E: de::Error>(
        self,
        push: impl FnOnce(&mut Values) -> Result<(), &'static str>,
    ) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom("`data` must be an array"));
        }
        if *self.elements.leaf_depth.get_or_insert(self.depth) != self.depth {
            return Err(E::custom(RAGGED));
        }
        push(&mut self.elements.values).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("numbers, strings, booleans or arrays of them in `data`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let Self { elements, depth } = self;
        if depth == MAX_RANK {
            let message = format!("`data` is nested deeper than {MAX_RANK} levels");
            return Err(de::Error::custom(message));
        }
        let mut len = 0;
        while sequence.next_element_seed(Level { elements, depth: depth + 1 })?.is_some() {
            len += 1;
        }
        if *elements.extents[depth].get_or_insert(len) != len {
            return Err(de::Error::custom(RAGGED));
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.add(|values| values.push_integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            #[expect(clippy::cast_precision_loss, reason = "it is no INT64; FP32 rounds further")]
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.add(|values| values.push_float(value))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.add(|values| values.push_boolean(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.add(|values| values.push_text(value.as_bytes().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Elements, Values};

    fn parse(text: &str) -> Result<(Vec<usize>, Values), String> {
        let elements: Elements = serde_json::from_str(text).map_err(|e| e.to_string())?;
        Ok((elements.extents(), elements.values))
    }

    #[test]
    fn flat_and_nested_arrays_are_read_in_row_major_order() {
        for (text, extents, values) in [
            ("[]", vec![0], Values::Empty),
            ("[1,-2,3]", vec![3], Values::Integers(vec![1, -2, 3])),
            ("[[1,2,3],[4,5,6]]", vec![2, 3], Values::Integers(vec![1, 2, 3, 4, 5, 6])),
            ("[[[0.5]],[[2]]]", vec![2, 1, 1], Values::Floats(vec![0.5, 2.0])),
            ("[1,0.5]", vec![2], Values::Floats(vec![1.0, 0.5])),
            ("[18446744073709551615]", vec![1], Values::Floats(vec![18_446_744_073_709_551_615.0])),
            ("[\"a\",\"\"]", vec![2], Values::Texts(vec![b"a".to_vec(), Vec::new()])),
            ("[true,false]", vec![2], Values::Booleans(vec![true, false])),
            ("[[],[]]", vec![2, 0], Values::Empty),
        ] {
            assert_eq!(parse(text), Ok((extents, values)), "{text}");
        }
    }

    #[test]
    fn what_is_no_tensor_is_refused_with_the_reason() {
        for (text, reason) in [
            ("[1,\"a\"]", "mixes"),
            ("[\"a\",0.5]", "mixes"),
            ("[[1,2],[3]]", "ragged"),
            ("[1,[2]]", "ragged"),
            ("[[],1]", "ragged"),
            ("[[1],2]", "ragged"),
            ("[null]", "expected numbers"),
            ("[true,1]", "mixes"),
            ("[1,true]", "mixes"),
            ("[{}]", "expected numbers"),
            ("7", "must be an array"),
            ("\"text\"", "must be an array"),
            ("[1e999]", "number out of range"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_is_limited_long_before_the_stack_is() {
        assert_eq!(parse("[[[[[[[[1]]]]]]]]").map(|(extents, _)| extents), Ok(vec![1; 8]));
        let error = parse(&"[".repeat(100_000)).expect_err("too deep");
        assert!(error.contains("deeper than 8"), "{error}");
    }
}
