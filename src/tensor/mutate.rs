//! Fuzzing input: copies of valid bytes with a few changes, fed to each reader of bytes from
//! outside. A round of some thousand inputs is part of the tests; `make fuzz` feeds a million.
//!
//! The changes know the forms that are read here: numbers, nesting, lengths, repetition. Libraries
//! that generate inputs need a nightly compiler to follow the code that they reach. Without that
//! they make values of Rust types or random bytes, few of which pass a reader's first check.

use std::{
    any::Any,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use allocation_counter::measure;
use serde::Serialize;
use serde_json::{Value, to_value};

/// Number of inputs per reader, unless `FUZZ_CASES` sets another.
const NUM_CASES: usize = 2_000;

/// Most bytes that a reader holds at one time; the inputs are far smaller.
const MAX_HELD_BYTES: u64 = 64 << 20;

/// Most bytes that all inputs of a reader leave behind: caches that are filled once.
const MAX_LEFT_BYTES: i64 = 8 << 20;

/// Length beyond which an input is not made longer.
const MAX_INPUT_BYTES: usize = 256 << 10;

/// Number of bytes of an input that a failure shows.
const NUM_SHOWN_BYTES: usize = 4096;

/// Bytes that readers often handle wrongly, such as extreme numbers and deep nesting.
const EXTREMES: [&[u8]; 10] = [
    &[0xff; 8],
    &[0; 8],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    b"-9223372036854775808",
    b"1e999",
    b"[[[[[[[[[[[[[[[[",
    b"\xf0\x28\x8c\x28",
    b"\"\"",
    b"../../../",
];

/// Numbers that take the place of others in texts.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1e308",
    "0.1",
    "-0.0",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "1000000000000",
    "9223372036854775807",
    "18446744073709551615",
];

/// Calls `read` with changed copies of `seeds`, and checks what it holds and leaves in memory.
pub(crate) fn feed(seeds: &[Vec<u8>], mut read: impl FnMut(Vec<u8>)) {
    let cases = env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    let mut random = Random(0x07e5_5e4a);
    let mut left = 0;
    for case in 0..cases.unwrap_or(NUM_CASES) {
        let mut bytes = seeds[case % seeds.len()].clone();
        // The first round shows that the seeds are read, or refused, as they are.
        if case >= seeds.len() {
            for _ in 0..=random.below(4) {
                change(&mut bytes, seeds, &mut random);
            }
        }
        let mut outcome = Ok(());
        let used = measure(|| {
            outcome = catch_unwind(AssertUnwindSafe(|| read(bytes.clone())));
        });
        let shown = || bytes[..bytes.len().min(NUM_SHOWN_BYTES)].escape_ascii();
        if let Err(panic) = outcome {
            panic!("input {case} fails: {}: {}", message(&*panic), shown());
        }
        let held = used.bytes_max;
        assert!(held <= MAX_HELD_BYTES, "input {case} takes {held} bytes: {}", shown());
        left += used.bytes_current;
    }
    assert!(left <= MAX_LEFT_BYTES, "{left} bytes are left behind");
}

/// Writes changed copies of `seeds` to the file `path` and calls `read` after each.
pub(crate) fn feed_file(seeds: &[Vec<u8>], path: &Path, mut read: impl FnMut()) {
    feed(seeds, |bytes| {
        // Some file systems put a file on disk that is written over, which takes milliseconds.
        drop(std::fs::remove_file(path));
        std::fs::write(path, bytes).expect("written");
        read();
    });
}

/// Returns whether two values are the same once they are written as JSON. Numbers may differ in
/// their last digits: the parser rounds some of them to a neighbour, as it does for requests.
pub(crate) fn are_same(left: &impl Serialize, right: &impl Serialize) -> bool {
    let value = |written: Result<Value, _>| written.expect("it can be written");
    are_same_values(&value(to_value(left)), &value(to_value(right)))
}

fn are_same_values(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len()
                && left.iter().zip(right).all(|(left, right)| are_same_values(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, own)| {
                    right.get(key).is_some_and(|other| are_same_values(own, other))
                })
        }
        (Value::Number(one), Value::Number(other)) if one != other => {
            let pair = one.as_f64().zip(other.as_f64());
            pair.is_some_and(|(one, other)| (one - other).abs() <= one.abs() * 1e-15)
        }
        _ => left == right,
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let place = random.below(bytes.len() + 1);
    let end = (place + random.below(16)).min(bytes.len());
    match random.below(12) {
        0 if place < bytes.len() => bytes[place] ^= 1 << random.below(8),
        1 if place < bytes.len() => bytes[place] = random.byte(),
        2 => bytes.truncate(place),
        3 => drop(bytes.drain(place..end)),
        4 => {
            let copy = bytes[place..end].to_vec();
            bytes.splice(place..place, copy);
        }
        5 => drop(bytes.splice(place..end, EXTREMES[random.below(EXTREMES.len())].to_vec())),
        6 => {
            let other = &seeds[random.below(seeds.len())];
            let tail = &other[random.below(other.len() + 1)..];
            bytes.truncate(place);
            bytes.extend_from_slice(tail);
        }
        7 => repeat(bytes, place, random),
        8 | 9 => replace_number(bytes, place, random),
        _ => bytes.insert(place, random.byte()),
    }
}

/// Repeats a part of `bytes` at `place` many times.
fn repeat(bytes: &mut Vec<u8>, place: usize, random: &mut Random) {
    let end = (place + random.below(200)).min(bytes.len());
    let count = 1 << random.below(12);
    if bytes.len() + (end - place) * count <= MAX_INPUT_BYTES {
        let copies = bytes[place..end].repeat(count);
        bytes.splice(place..place, copies);
    }
}

/// Replaces the first number in digits at or behind `place`.
fn replace_number(bytes: &mut Vec<u8>, place: usize, random: &mut Random) {
    let Some(start) = bytes[place..].iter().position(u8::is_ascii_digit) else { return };
    let start = place + start;
    let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = NUMBERS[random.below(NUMBERS.len())];
    bytes.splice(start..start + length, number.bytes());
}

/// Random number generator SplitMix64 (Steele, Lea, Flood 2014). Every run yields the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}
