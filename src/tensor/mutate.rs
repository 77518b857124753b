//! Fuzzing input: copies of valid bytes with a few changes. Tests feed a million of them to each
//! reader.

use std::{env, path::Path};

/// Number of inputs per reader, unless `FUZZ_CASES` sets another.
const NUM_CASES: usize = 1_000_000;

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

/// Calls `read` with changed copies of `seeds`.
pub(crate) fn feed(seeds: &[Vec<u8>], mut read: impl FnMut(Vec<u8>)) {
    let cases = env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    let mut random = Random(0x07e5_5e4a);
    for case in 0..cases.unwrap_or(NUM_CASES) {
        let mut bytes = seeds[case % seeds.len()].clone();
        for _ in 0..=random.below(4) {
            change(&mut bytes, seeds, &mut random);
        }
        read(bytes);
    }
}

/// Writes changed copies of `seeds` to the file `path` and calls `read` after each.
pub(crate) fn feed_file(seeds: &[Vec<u8>], path: &Path, mut read: impl FnMut()) {
    feed(seeds, |bytes| {
        std::fs::write(path, bytes).expect("written");
        read();
    });
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let place = random.below(bytes.len() + 1);
    let end = (place + random.below(16)).min(bytes.len());
    match random.below(8) {
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
        _ => bytes.insert(place, random.byte()),
    }
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
