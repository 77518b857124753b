//! Fuzz tests of the data of offline work, which must be read or refused: `make fuzz`.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

use super::{Corpus, ImageSet};
use crate::{family::Manifest, tensor::mutate::feed_file};

fn npy(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n");
    let length = u16::try_from(header.len()).expect("short").to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), values].concat()
}

#[test]
fn arrays() {
    let pool = tempfile::tempdir().expect("a folder");
    let folder = pool.path().join("fashion");
    std::fs::create_dir(&folder).expect("created");
    let manifest = include_str!("../../tests/pool/fashion/family.toml");
    std::fs::write(folder.join("family.toml"), manifest).expect("written");
    let manifest = Manifest::read(&folder).expect("valid");
    let idx = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1][..], &[0, 9, 7, 255]].concat();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&idx).expect("written");
    let labels = pool.path().join("labels");
    std::fs::write(&labels, [0, 0, 8, 1, 0, 0, 0, 2, 3, 4]).expect("written");
    let images = pool.path().join("images");
    let seeds = [
        idx,
        gzip.finish().expect("written"),
        npy("|u1", "(2, 2, 1)", &[0, 9, 7, 255]),
        npy("|u1", "(2, 1, 1, 3)", &[0, 9, 7, 255, 0, 1]),
    ];
    let read = |images, labels| {
        if let Ok(set) = ImageSet::read(images, Some(labels), &manifest, Some(5)) {
            drop(set.pixels(&[0, 1], &manifest));
        }
    };
    feed_file(&seeds, &images, || read(&images, &labels));
    std::fs::write(&images, &seeds[0]).expect("written");
    let seeds = [
        vec![0, 0, 8, 1, 0, 0, 0, 2, 3, 4],
        npy("<i8", "(2,)", &[[3; 1], [0; 1]].concat().repeat(8)),
        npy("<i4", "(2,)", &[3, 0, 0, 0, 4, 0, 0, 0]),
    ];
    feed_file(&seeds, &labels, || read(&images, &labels));
}

#[test]
fn texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("texts.jsonl");
    let seed = b"{\"id\": \"1\", \"text\": \"a mail\"}\n\n{\"id\": \"2\", \"text\": \"\\u00e9\"}\n";
    feed_file(&[seed.to_vec()], &path, || drop(Corpus::read(&path, Some(8))));
}
