//! Signatures and sentences: parameters have names, doc sentences have subjects, folders are small.

use std::path::Path;

use crate::{
    support::root,
    tidy::{code_of, sources, tested_sources},
};

const MAX_FILES: usize = 15;

/// Share of doc sentences that may open with a relative clause.
const MAX_SHARE: f64 = 0.01;

/// Words at the start of a doc sentence whose subject the reader would have to find.
const OPENINGS: [&str; 21] = [
    "What", "How", "Which", "Who", "Whose", "Whoever", "Whatever", "Where", "When", "Why", "Those",
    "Nothing", "Nobody", "The same", "As many", "As much", "So many", "It", "They", "Tells",
    "That",
];

/// Returns the doc comments of a file, each on one line.
fn doc_comments(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in text.lines().map(str::trim_start) {
        let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        match (comment, found.last_mut()) {
            (Some(comment), Some(last)) => {
                last.push_str(comment.trim());
                last.push(' ');
            }
            _ => found.push(String::new()),
        }
    }
    found.retain(|comment| !comment.is_empty());
    found
}

/// Returns whether a doc comment opens with a word that has no subject.
fn is_open(comment: &str) -> bool {
    OPENINGS.iter().any(|opening| {
        let rest = comment.strip_prefix(opening);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    })
}

/// Returns the names of functions in `code` that take a tuple apart in their parameters.
fn tuple_parameters(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, _) in code.match_indices("fn ") {
        let rest = &code[index + "fn ".len()..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let is_word = !code[..index].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let Some(parameters) = rest.find('(').map(|open| &rest[open + 1..]) else { continue };
        if name.is_empty() || !is_word {
            continue;
        }
        let (mut depth, mut is_start, mut is_tuple) = (0_i32, true, false);
        for character in parameters.replace("->", "").chars() {
            match character {
                '(' if depth == 0 && is_start => is_tuple = true,
                ')' if depth == 0 => break,
                '(' | '[' | '{' | '<' => depth += 1,
                ')' | ']' | '}' | '>' => depth -= 1,
                ',' if depth == 0 => {
                    is_start = true;
                    continue;
                }
                _ => {}
            }
            is_start = is_start && character.is_whitespace();
        }
        if is_tuple {
            found.push(name);
        }
    }
    found
}

/// Returns the folders below `folder` that hold more than [`MAX_FILES`] Rust files.
fn full_folders(folder: &Path) -> Vec<String> {
    let paths = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("it").path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let num_files = files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).count();
    let own = (num_files > MAX_FILES).then(|| format!("{}: {num_files}", folder.display()));
    own.into_iter().chain(folders.iter().flat_map(|folder| full_folders(folder))).collect()
}

#[test]
fn no_folder_is_full() {
    assert_eq!(full_folders(&root().join("src")), [""; 0]);
}

#[test]
fn parameters_have_names() {
    let mut found = Vec::new();
    for (file, text) in tested_sources() {
        let names = tuple_parameters(&code_of(&text));
        found.extend(names.into_iter().map(|name| format!("{file}: {name}")));
    }
    assert!(found.is_empty(), "tuples as parameters:\n{}", found.join("\n"));
}

#[test]
fn doc_sentences_have_subjects() {
    let (mut num_all, mut open) = (0, Vec::new());
    for (file, text) in sources() {
        let comments = doc_comments(&text);
        num_all += comments.len();
        let found = comments.into_iter().filter(|comment| is_open(comment));
        open.extend(found.map(|comment| format!("{file}: {comment}")));
    }
    assert!(num_all > 1_000, "doc comments were found");
    let share = open.len() as f64 / f64::from(num_all as u32);
    assert!(share < MAX_SHARE, "{} of {num_all}:\n{}", open.len(), open.join("\n"));
}

#[test]
fn what_is_unnamed_is_found() {
    let names = |code: &str| tuple_parameters(code);
    assert_eq!(names("fn a(x: u8, (b, c): (u8, u8)) {}"), ["a"]);
    assert_eq!(names("fn a(\n    (b, c): (u8, u8),\n) {}"), ["a"]);
    assert_eq!(names("fn a(f: impl Fn(u8) -> u8) -> u8 { f(2) }\nfn b() { c((1, 2)) }"), [""; 0]);
    assert_eq!(names("fn a<T: Fn(u8)>(x: Vec<(u8, u8)>, f: impl Fn((u8, u8))) {}"), [""; 0]);
    for open in ["What it is.", "It waits.", "The same of others.", "Tells whether it waits."] {
        assert!(is_open(open), "{open}");
    }
    for named in ["Whatsoever name.", "Items that wait.", "Returns what it was."] {
        assert!(!is_open(named), "{named}");
    }
    assert_eq!(doc_comments("//! A\n//! b.\n\n/// C.\nfn d() {}\n"), ["A b. ", "C. "]);
}
