//! Tests of reading GGUF files.

use super::*;
use crate::{
    onnx::{blocks::BlockType, external::read_floats, proto::data_type},
    pool::written::{Value, Written},
};

/// Returns a file with a key of every type and three tensors.
pub(in crate::pool) fn example() -> Written {
    let texts = ["a", "", "é"].map(Value::text);
    let nested = Value::list(5, &[Value::raw(5, &[1, 0, 0, 0])]);
    let halves: Vec<u8> = [0x3c00_u16, 0x4000].iter().flat_map(|half| half.to_le_bytes()).collect();
    let floats: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    Written::new()
        .with("u8", Value::raw(0, &[200]))
        .with("i8", Value::raw(1, &[0xff]))
        .with("u16", Value::raw(2, &[1, 2]))
        .with("i16", Value::raw(3, &[0xfe, 0xff]))
        .with("u32", Value::number(7))
        .with("i32", Value::raw(5, &(-7_i32).to_le_bytes()))
        .with("f32", Value::float(0.5))
        .with("bool", Value::truth(true))
        .with("text", Value::text("llama"))
        .with("texts", Value::list(8, &texts))
        .with("bytes", Value::list(0, &[Value::raw(0, &[3]), Value::raw(0, &[4])]))
        .with("nested", Value::list(9, &[nested]))
        .with("u64", Value::raw(10, &u64::MAX.to_le_bytes()))
        .with("i64", Value::raw(11, &i64::MIN.to_le_bytes()))
        .with("f64", Value::raw(12, &0.25_f64.to_le_bytes()))
        .tensor("floats", &[2], 0, &floats)
        .tensor("halves", &[1, 2], 1, &halves)
        .tensor("blocks", &[32, 2], 8, &[0x3c; 68])
}

fn parsed(file: &Written) -> Result<GgufFile, String> {
    parsed_bytes(&file.bytes()).map(|(file, _)| file)
}

fn parsed_bytes(bytes: &[u8]) -> Result<(GgufFile, tempfile::TempDir), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, bytes).expect("written");
    let file = MappedFile::open(&path).expect("mapped");
    let parsed = GgufFile::parse(folder.path(), &file, Path::new("a.gguf"));
    parsed.map(|file| (file, folder)).map_err(|error| error.to_string())
}

fn check_refused(file: &Written, reason: &str) {
    let error = parsed(file).expect_err(reason);
    assert!(error.contains(reason), "{error}");
}

#[test]
fn keys_of_every_type_are_read() {
    for version in VERSIONS {
        let file = parsed(&Written { version, ..example() }).expect("valid");
        let value = |key: &str| file.value(key).expect("there").clone();
        assert_eq!(value("u8"), GgufValue::Unsigned(200));
        assert_eq!(value("i8"), GgufValue::Signed(-1));
        assert_eq!(value("u16"), GgufValue::Unsigned(513));
        assert_eq!(value("i16"), GgufValue::Signed(-2));
        assert_eq!(value("u32").as_unsigned(), Some(7));
        assert_eq!(value("i32"), GgufValue::Signed(-7));
        assert_eq!(value("f32").as_float(), Some(0.5));
        assert_eq!(value("bool").as_bool(), Some(true));
        assert_eq!(value("text").as_text(), Some("llama"));
        assert_eq!(value("u64"), GgufValue::Unsigned(u64::MAX));
        assert_eq!(value("i64"), GgufValue::Signed(i64::MIN));
        assert_eq!(value("f64"), GgufValue::Float(0.25));
        let texts = value("texts");
        assert_eq!(texts.as_list().and_then(GgufList::texts), Some(vec!["a", "", "é"]));
        let bytes = value("bytes");
        let expected = vec![GgufValue::Unsigned(3), GgufValue::Unsigned(4)];
        assert_eq!(bytes.as_list().and_then(GgufList::values), Some(expected));
        let nested = value("nested");
        assert_eq!(nested.as_list().map(GgufList::len), Some(1));
        assert_eq!(nested.as_list().and_then(GgufList::values), None);
        assert_eq!(file.value("other"), None);
    }
}

#[test]
fn tensors_are_a_checkpoint_under_other_names() {
    let (file, folder) = parsed_bytes(&example().bytes()).expect("valid");
    let rename = |name: &str| (name != "halves").then(|| format!("model.{name}"));
    let checkpoint = file.checkpoint(rename);
    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(names, ["model.blocks", "model.floats"]);
    let floats = checkpoint.weight("model.floats", &[2]).expect("there");
    assert_eq!(floats.data_type, data_type::FLOAT);
    assert_eq!(read_floats(folder.path(), &floats).expect("read"), [1.5, -2.0]);
    // A row of 32 elements is one block; each level is 60, and the scale 0x3c3c.
    let row = checkpoint.rows("model.blocks", &[2, 32], 1..2).expect("there");
    assert_eq!(BlockType::of_data_type(row.data_type), Some(BlockType::Q8_0));
    let scale = half::f16::from_bits(0x3c3c).to_f32();
    assert_eq!(read_floats(folder.path(), &row).expect("read"), [scale * 60.0; 32]);
}

#[test]
fn another_alignment_is_honoured() {
    let wide = Written { alignment: 64, ..example() };
    let file = parsed(&wide.with(ALIGNMENT, Value::number(64))).expect("valid");
    assert!(file.tensors().all(|(_, place)| place.offset % 64 == 0));
    for wrong in [Value::number(0), Value::number(48), Value::number(1 << 17), Value::text("32")] {
        check_refused(&example().with(ALIGNMENT, wrong), "general.alignment");
    }
}

#[test]
fn places_that_cannot_be_are_refused_by_the_tensors_name() {
    let with_offset = |index: usize, offset| {
        let mut file = example();
        file.tensors[index].offset = Some(offset);
        file
    };
    check_refused(&with_offset(1, 0), "tensors `floats` and `halves` overlap");
    check_refused(&with_offset(1, 8), "tensor `halves` starts at 8");
    check_refused(&with_offset(2, 1 << 20), "tensor `blocks` lies beyond the file's end");
    check_refused(&with_offset(2, u64::MAX - 31), "tensor `blocks` lies beyond the file's end");
    let short = example().tensor("short", &[8], 0, &[0; 16]);
    check_refused(&short, "tensor `short` lies beyond the file's end");
    let twice = example().tensor("floats", &[1], 0, &[0; 4]);
    check_refused(&twice, "tensor `floats` stands twice");
}

#[test]
fn shapes_and_types_that_cannot_be_are_refused_by_the_tensors_name() {
    for (extents, kind, reason) in [
        (&[31, 2][..], 8, "tensor `x`: its rows have 31 elements, but blocks have 32"),
        (&[0], 0, "tensor `x`: its extents [0] are not possible"),
        (&[1 << 40, 1 << 40], 0, "are not possible"),
        (&[u64::MAX], 0, "are not possible"),
        (&[], 0, "tensor `x`: it has 0 axes"),
        (&[1; 5], 0, "tensor `x`: it has 5 axes"),
        (&[256], 10, "tensor `x`: it has the type Q2_K"),
        (&[256], 4_000, "tensor `x`: it has the type 4000"),
    ] {
        check_refused(&example().tensor("x", extents, kind, &[]), reason);
    }
    check_refused(&example().tensor("", &[1], 0, &[0; 4]), "name has 0 bytes");
    check_refused(&example().tensor(&"x".repeat(256), &[1], 0, &[0; 4]), "name has 256 bytes");
}

#[test]
fn keys_that_cannot_be_are_refused_by_name() {
    let huge = |kind: u32, count: u64| {
        Value::raw(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat())
    };
    let deep = (0..5).fold(Value::list(4, &[]), |inner, _| Value::list(9, &[inner]));
    for (value, reason) in [
        (huge(4, u64::MAX), "it has 18446744073709551615 elements"),
        (huge(8, 1 << 40), "it has 1099511627776 elements"),
        (huge(9, 1 << 40), "it has 1099511627776 elements"),
        (deep, "lists are nested deeper than 4"),
        (Value::raw(13, &[0; 8]), "a value has the type 13"),
        (Value::raw(7, &[2]), "a truth value is 2"),
        (Value::list(7, &[Value::raw(7, &[3])]), "a truth value is 3"),
        (Value::raw(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "a text is not UTF-8"),
    ] {
        let file = Written { pairs: vec![("key".into(), value)], ..example() };
        check_refused(&file, &format!("key `key`: {reason}"));
    }
    check_refused(&example().with("u8", Value::number(1)), "key `u8` stands twice");
}

#[test]
fn files_of_another_kind_are_refused() {
    for version in [0, 1, 4] {
        check_refused(&Written { version, ..example() }, "this version is not supported");
    }
    check_refused(&Written { version: 3 << 24, ..example() }, "a big-endian file");
    for bytes in [&b"GGML"[..], b"", b"GGUF\x03\0\0\0"] {
        assert!(parsed_bytes(bytes).expect_err("short").contains("is not a valid GGUF file"));
    }
    let mut counts = example().bytes();
    counts[8..16].fill(0xff);
    assert!(parsed_bytes(&counts).expect_err("many").contains("tensors, but"));
    counts[16..24].fill(0xff);
    assert!(parsed_bytes(&counts).expect_err("many").contains("keys, but"));
}

#[test]
fn a_file_that_ends_anywhere_is_refused() {
    let whole = example().bytes();
    for length in (0..whole.len()).step_by(7) {
        assert!(parsed_bytes(&whole[..length]).is_err(), "{length} of {}", whole.len());
    }
}
