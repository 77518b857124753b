//! What the compiler does not check: who imports whom, how long files are, where names may stand.

use std::path::{Path, PathBuf};

use crate::support::root;

/// The rooms, lowest first: a room imports only rooms before it.
const ROOMS: [&str; 11] = [
    "tensor",
    "family",
    "plan",
    "onnx",
    "arch",
    "runtime",
    "fit",
    "serve",
    "api",
    "telemetry",
    "cli",
];

/// Names that may stand in one room (or file) only.
const CONFINED: [(&str, &str); 5] = [
    ("ort::", "src/runtime/"),
    ("axum::", "src/api/"),
    ("tonic::", "src/api/"),
    ("println!", "src/cli/"),
    ("unsafe {", "src/tensor/mapped.rs"),
];

const MAX_LINES: usize = 500;
const MAX_COLUMNS: usize = 100;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns every source file as its path from the root and its text.
fn all_sources() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("read");
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            (name, text)
        })
        .collect()
}

/// Returns the rooms that `text` imports, also from a nested `use crate::{…}`.
fn imported_rooms(text: &str) -> Vec<&'static str> {
    let code: String = text.lines().filter(|line| !line.trim().starts_with("//")).collect();
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => top_level_names(group),
            None => {
                vec![rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")]
            }
        };
        found.extend(ROOMS.into_iter().filter(|room| names.contains(room)));
    }
    found
}

/// Returns the first names of the items of a braced list.
fn top_level_names(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut names) = (0_usize, 0, Vec::new());
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(&group[start..index]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(&group[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    names.iter().map(|item| item.trim().split("::").next().unwrap_or("").trim()).collect()
}

/// Says what is wrong with a file.
fn complaints(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let room = name.split('/').nth(1).unwrap_or_default();
    if let Some(own) = ROOMS.iter().position(|known| *known == room) {
        for imported in imported_rooms(text) {
            if ROOMS.iter().position(|known| *known == imported) > Some(own) {
                found.push(format!("{name}: `{room}` imports `{imported}`, which stands above it"));
            }
        }
    }
    let code: Vec<&str> = text.lines().filter(|line| !line.trim().starts_with("//")).collect();
    for (word, place) in CONFINED {
        let stands = |line: &&str| line.split('"').next().is_some_and(|code| has_word(code, word));
        if !name.starts_with(place) && code.iter().any(stands) {
            found.push(format!("{name}: `{word}` belongs in {place}"));
        }
    }
    if text.lines().count() > MAX_LINES {
        found.push(format!("{name}: over {MAX_LINES} lines"));
    }
    if text.lines().any(|line| line.chars().count() > MAX_COLUMNS) {
        found.push(format!("{name}: a line over {MAX_COLUMNS} columns"));
    }
    if !text.starts_with("//!") {
        found.push(format!("{name}: does not begin with what it is for"));
    }
    if ["TODO", "FIXME", "XXX"].iter().any(|mark| text.contains(mark)) {
        found.push(format!("{name}: has something left to do"));
    }
    found
}

/// Tells whether `word` stands in `code` and is not the end of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(index, _)| {
        let before = code[..index].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

#[test]
fn every_source_file_is_tidy() {
    let files = all_sources();
    assert!(files.len() > 50, "the sources were found");
    let found: Vec<String> = files.iter().flat_map(|(name, text)| complaints(name, text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_is_untidy_is_found() {
    for (name, text, complaint) in [
        ("src/plan/a.rs", "//! A.\nuse crate::serve::Registry;\n", "imports `serve`"),
        (
            "src/onnx/a.rs",
            "//! A.\nuse crate::{\n tensor::{A, B},\n arch::C,\n};\n",
            "imports `arch`",
        ),
        ("src/plan/a.rs", "//! A.\nfn a() { crate::runtime::b(); }\n", "imports `runtime`"),
        ("src/fit/a.rs", "//! A.\nuse ort::session::Session;\n", "`ort::` belongs"),
        ("src/serve/a.rs", "//! A.\nuse axum::Router;\n", "`axum::` belongs"),
        ("src/plan/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", "`unsafe {` belongs"),
        ("src/plan/a.rs", "//! A.\nfn a() { println!(); }\n", "`println!` belongs"),
        ("src/plan/a.rs", "fn a() {}\n", "does not begin"),
        ("src/plan/a.rs", &format!("//! A.{}", "\n".repeat(501)), "over 500 lines"),
        ("src/plan/a.rs", &format!("//! {}", "a".repeat(100)), "over 100 columns"),
    ] {
        let found = complaints(name, text).join("\n");
        assert!(found.contains(complaint), "{text}: {found}");
    }
    let tidy =
        "//! A.\nuse crate::{\n    plan::Budget,\n    tensor::Tensor,\n};\nuse support::x;\n";
    assert!(complaints("src/serve/a.rs", tidy).is_empty());
}
