//! Fuzz tests of what options and requests say in words: sizes and element types (`make fuzz`).

use super::{ByteSize, DataType, mutate::feed};

#[test]
fn sizes_and_types() {
    let seeds = ["64MiB", "1.5 GB", "12", "3kb", "FP32", "BYTES"];
    feed(&seeds.map(|seed| seed.as_bytes().to_vec()), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(size) = text.parse::<ByteSize>() {
            assert_eq!(size.0.to_string().parse(), Ok(size), "{text}");
        }
        if let Some(found) = DataType::from_name(&text) {
            assert_eq!(found.name(), text);
        }
    });
}
