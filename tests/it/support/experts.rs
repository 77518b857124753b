//! Families of the repository whose feed-forward parts are split among experts.

use std::{fs, sync::OnceLock};

use serde_json::json;
use tessera::{
    family::Manifest,
    fit::{Dataset, ExpertOptions, fit_experts},
    pool::FamilyWriter,
};

use super::{root, runtime};
use crate::pool::{Pool, text_manifest};

pub(crate) fn fit(pool: &Pool, data: &Dataset) {
    let mut writer = FamilyWriter::begin(&pool.path()).expect("nobody else writes");
    let count = fit_experts(&runtime(), &mut writer, data, &ExpertOptions::default(), &());
    assert!(count.expect("fitted") > 0);
}

/// Splits one anchor of the text family.
pub(crate) fn text_pool(anchor: &str, experts: &str) -> Pool {
    let source = root().join("models/text");
    let manifest = text_manifest(&source, anchor).expect("an anchor");
    let pool = Pool::new(&source, &manifest, experts).expect("a pool");
    fit(&pool, &texts(&pool));
    pool
}

fn texts(pool: &Pool) -> Dataset {
    let words = ["server", "mail", "invoice", "garden", "meeting", "price", "night", "question"];
    let lines: Vec<String> = (0..360)
        .map(|number| {
            let word = |step: usize| words[(number / step + number) % words.len()];
            let text = format!("The {} of {} number {number} came late.", word(1), word(8));
            json!({"id": number.to_string(), "text": text}).to_string()
        })
        .collect();
    let file = pool.path().with_file_name("texts.jsonl");
    fs::write(&file, lines.join("\n")).expect("written");
    let manifest = Manifest::read(&pool.path()).expect("read");
    Dataset::read(&file, None, &manifest, None).expect("texts")
}

const L6: &str = "[[experts]]\nanchor = \"l6\"\nnum_experts = 16\ntop_k = [4, 16]\n\
                  router = \"learned\"\n\n\
                  [[experts]]\nanchor = \"l6\"\nnum_experts = 8\ntop_k = [2, 8]\n\
                  router = \"average\"\nblocks = [0, 3]\n";

/// The real l6 with experts, fitted once.
pub(crate) fn l6() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| text_pool("l6", L6))
}
