//! What the compiler does not check: who imports whom, how long files are, where names may stand.

use std::path::{Path, PathBuf};

use crate::support::root;

/// The rooms, lowest first: a room imports only rooms before it.
const ROOMS: [&str; 19] = [
    "tensor",
    "plan",
    "family",
    "onnx",
    "module",
    "input",
    "pool",
    "arch",
    "assembly",
    "runtime",
    "offer",
    "fit",
    "serve",
    "picture",
    "telemetry",
    "api",
    "app",
    "bench",
    "cli",
];

/// What the edges import of the rooms before them: what they serve, plain data, and how texts
/// become tokens and answers.
const NARROW: [(&str, &[&str]); 5] = [
    ("picture", &["family", "assembly"]),
    ("serve", &SERVED),
    ("telemetry", &["tensor", "plan", "runtime", "serve"]),
    ("api", &["tensor", "family", "plan", "input", "serve", "telemetry"]),
    ("bench", &["tensor", "plan"]),
];

/// Rooms that serving needs: neither offline work nor architectures.
const SERVED: [&str; 9] =
    ["tensor", "plan", "family", "module", "input", "pool", "assembly", "runtime", "offer"];

/// Names that may stand in some rooms (or files) only. The clock that can be set dates what is
/// written; what is decided while serving depends on the one that cannot jump.
const CONFINED: [(&str, &[&str]); 11] = [
    ("ort", &["src/runtime/"]),
    ("axum", &["src/api/"]),
    ("tonic", &["src/api/"]),
    ("hyper", &["src/api/"]),
    ("reqwest", &["src/bench/", "src/cli/chat.rs"]),
    ("unsafe", &["src/tensor/"]),
    ("print!", &["src/cli/"]),
    ("println!", &["src/cli/"]),
    ("dbg!", &["nowhere"]),
    ("SystemTime", &["src/pool/", "src/fit/", "src/serve/families/statistics.rs"]),
    ("UNIX_EPOCH", &["src/pool/", "src/serve/families/statistics.rs"]),
];

/// Functions that read files without a limit, or wait for what a named pipe is given.
const UNBOUNDED: [&str; 5] =
    ["fs::read", "read_to_string", "File::open", "from_reader", "from_pem_file"];

/// Where such functions may stand: in the one that bounds them, on files of the kernel or of this
/// process, and for locks of folders.
const READERS: [&str; 9] = [
    "src/tensor/",
    "src/app/cgroup.rs",
    "src/offer/profile.rs",
    "src/runtime/probe/activations.rs",
    "src/runtime/probe/competition.rs",
    "src/runtime/residents/mod.rs",
    "src/fit/import/mod.rs",
    "src/pool/disk.rs",
    "src/pool/writer.rs",
];

/// Marks of work left to do.
const LEFT_TO_DO: [&str; 3] = ["TODO", "FIXME", "XXX"];

const MAX_LINES: usize = 500;
const MAX_COLUMNS: usize = 100;

/// Finds the Rust files below `folder`.
fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns the Rust files of the sources.
pub(crate) fn source_files() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    find_sources(&root().join("src"), &mut paths);
    assert!(paths.len() > 50, "the sources were found");
    paths
}

/// Returns the source files as texts by name, such as `src/serve/mod.rs`.
pub(crate) fn sources() -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        (name, std::fs::read_to_string(&path).expect("read"))
    };
    source_files().into_iter().map(read).collect()
}

/// Returns [`sources`] without tests.
pub(crate) fn tested_sources() -> Vec<(String, String)> {
    let files = sources().into_iter().filter(|(name, _)| !name.ends_with("_tests.rs"));
    files.map(|(name, text)| (name, without_tests(&text).to_owned())).collect()
}

/// Returns the part of `text` before its module of tests.
pub(crate) fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default()
}

/// Returns the code in `text`: comments and the content of literals are left out.
pub(crate) fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if next == '"' {
            string_length(rest)
        } else if let Some(raw) = ["r\"", "r#\"", "r##\""].iter().find(|r| rest.starts_with(**r)) {
            let end: String = raw[1..].chars().rev().collect();
            rest[raw.len()..].find(&end).map_or(rest.len(), |at| raw.len() + at + end.len())
        } else {
            let character = ["'\"'", "'\\\"'"].iter().find(|c| rest.starts_with(**c));
            character.map_or(0, |character| character.len())
        };
        if skipped == 0 {
            code.push(next);
        }
        let taken = if skipped == 0 { next.len_utf8() } else { skipped };
        rest = &rest[taken..];
    }
    code
}

/// Returns the bytes of the string literal that starts `text`.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Tells whether `word` stands in `code` as a whole name.
fn has_word(code: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(index, _)| {
        let after = code[index + word.len()..].chars().next().filter(|_| !word.ends_with('!'));
        !code[..index].chars().next_back().is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

/// Returns the rooms that `code` imports, also from a nested `use crate::{…}`.
fn imported_rooms(code: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for start in ["crate::", "super::super::"] {
        for (index, _) in code.match_indices(start) {
            let rest = &code[index + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) => names.extend(top_level_names(group)),
                None => names.push(first_name(rest)),
            }
        }
    }
    ROOMS.into_iter().filter(|room| names.contains(room)).collect()
}

/// Returns the first names of the items of a braced list.
fn top_level_names(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut names) = (0_usize, 0, Vec::new());
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(first_name(&group[start..index]));
                start = index + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn first_name(path: &str) -> &str {
    path.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Tells whether `room` may import `other`.
fn may_import(room: &str, other: &str) -> bool {
    let place = |name: &str| ROOMS.iter().position(|known| *known == name);
    match NARROW.iter().find(|(name, _)| *name == room) {
        _ if room == other => true,
        Some((_, allowed)) => allowed.contains(&other),
        None => place(other) < place(room),
    }
}

/// Says what is wrong with a file.
fn complaints(name: &str, text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut found = Vec::new();
    let room = name.split('/').nth(1).unwrap_or_default();
    if ROOMS.contains(&room) {
        let wrong = imported_rooms(&code).into_iter().filter(|other| !may_import(room, other));
        found.extend(wrong.map(|other| format!("`{room}` imports `{other}`")));
    }
    for (word, places) in CONFINED {
        if !places.iter().any(|place| name.starts_with(place)) && has_word(&code, word) {
            found.push(format!("`{word}` belongs in {}", places.join(", ")));
        }
    }
    if text.lines().count() > MAX_LINES {
        found.push(format!("over {MAX_LINES} lines"));
    }
    if let Some(line) = text.lines().position(|line| line.chars().count() > MAX_COLUMNS) {
        found.push(format!("line {} is over {MAX_COLUMNS} columns", line + 1));
    }
    if !text.starts_with("//! ") {
        found.push("does not begin with what it is for".into());
    }
    if ["/// ```", "//! ```"].iter().any(|example| text.contains(example)) {
        found.push("has an example, which no test runs".into());
    }
    if let Some(mark) = LEFT_TO_DO.iter().find(|mark| has_word(text, mark)) {
        found.push(format!("has a {mark}"));
    }
    found.into_iter().map(|complaint| format!("{name}: {complaint}")).collect()
}

#[test]
fn every_source_file_is_tidy() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        found.extend(complaints(&name, &text));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_are_read_by_the_function_that_bounds_them() {
    for (name, text) in tested_sources() {
        let code = code_of(&text);
        let found = UNBOUNDED.iter().find(|word| has_word(&code, word));
        let is_known = READERS.iter().any(|place| name.starts_with(place));
        assert!(found.is_none() || is_known, "{name}: {found:?}, not `tensor::read_text`");
    }
}

#[test]
fn every_room_is_in_the_table_and_clippy_is_configured() {
    let entries = std::fs::read_dir(root().join("src")).expect("the sources");
    let folders = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let mut folders: Vec<String> =
        folders.map(|path| path.file_name().expect("a name").display().to_string()).collect();
    folders.sort();
    let mut rooms = ROOMS.map(str::to_owned);
    rooms.sort();
    assert_eq!(folders, rooms);
    let clippy = std::fs::read_to_string(root().join(".clippy.toml")).expect(".clippy.toml");
    for setting in ["too-many-lines-threshold = 60", "too-many-arguments-threshold = 5"] {
        assert!(clippy.contains(setting), "{setting}");
    }
}

#[test]
fn what_is_untidy_is_found() {
    let long_file = "//! A.\n".to_owned() + &"\n".repeat(500);
    let long_line = "//! ".to_owned() + &"é".repeat(97);
    for (name, text, complaint) in [
        ("src/plan/a.rs", "//! A.\nuse crate::serve::Registry;\n", "imports `serve`"),
        ("src/onnx/a.rs", "//! A.\nuse crate::{\n tensor::{A, arch},\n arch::C,\n};", "`arch`"),
        ("src/onnx/a.rs", "//! A.\nuse crate::{fit};\n", "imports `fit`"),
        ("src/plan/a.rs", "//! A.\nfn a() { crate::runtime::b(); }\n", "imports `runtime`"),
        ("src/plan/a.rs", "//! A.\nfn a() { b(\"c\", crate::fit::d); }\n", "imports `fit`"),
        ("src/plan/a.rs", "//! A.\nuse super::super::serve::Registry;\n", "imports `serve`"),
        ("src/api/a.rs", "//! A.\nuse crate::runtime::Executor;\n", "imports `runtime`"),
        ("src/api/a.rs", "//! A.\nuse crate::{arch, plan, serve};\n", "imports `arch`"),
        ("src/telemetry/a.rs", "//! A.\nuse crate::api::router;\n", "imports `api`"),
        ("src/serve/a.rs", "//! A.\nuse crate::cli;\n", "imports `cli`"),
        ("src/fit/a.rs", "//! A.\nuse ort::session::Session;\n", "`ort` belongs"),
        ("src/fit/a.rs", "//! A.\nuse ort as onnxruntime;\n", "`ort` belongs"),
        ("src/serve/a.rs", "//! A.\nuse axum::Router;\n", "`axum` belongs"),
        ("src/serve/a.rs", "//! A.\nfn a() -> tonic::Status {}\n", "`tonic` belongs"),
        ("src/serve/a.rs", "//! A.\nuse {hyper::Body};\n", "`hyper` belongs"),
        ("src/plan/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", "`unsafe` belongs"),
        ("src/family/a.rs", "//! A.\nunsafe impl Send for A {}\n", "`unsafe` belongs"),
        ("src/plan/a.rs", "//! A.\nfn a() { println!(); }\n", "`println!` belongs"),
        ("src/plan/a.rs", "//! A.\nfn a() { b(\"//\"); print!(\"c\"); }\n", "`print!` belongs"),
        ("src/cli/a.rs", "//! A.\nfn a() { dbg!(1); }\n", "`dbg!` belongs"),
        ("src/serve/a.rs", "//! A.\nuse std::time::SystemTime;\n", "`SystemTime` belongs"),
        ("src/plan/a.rs", "//! A.\nfn a() {} // TODO: b\n", "has a TODO"),
        ("src/plan/a.rs", "//! A.\n/// ```\n/// b();\n/// ```\nfn b() {}\n", "has an example"),
        ("src/plan/a.rs", "fn a() {}\n", "does not begin"),
        ("src/plan/a.rs", "/// A.\nfn a() {}\n", "does not begin"),
        ("src/plan/a.rs", &long_file, "over 500 lines"),
        ("src/plan/a.rs", &long_line, "line 1 is over 100 columns"),
    ] {
        let found = complaints(name, text).join("\n");
        assert!(found.contains(complaint), "{text}: {found}");
    }
}

#[test]
fn what_is_tidy_is_left_in_peace() {
    for (name, text) in [
        (
            "src/serve/a.rs",
            "//! A.\nuse crate::{\n    plan::Budget,\n    tensor::{Tensor, cli},\n};",
        ),
        ("src/serve/a.rs", "//! See [`crate::api`] and axum.\nuse support::x;\n"),
        ("src/serve/a.rs", "//! A.\n/* crate::cli */ fn a() {} // crate::api, unsafe, ort\n"),
        (
            "src/plan/a.rs",
            "//! A.\nconst A: &str = \"crate::api \\\" unsafe\";\nconst B: char = '\"';\n",
        ),
        ("src/plan/a.rs", "//! A.\nconst A: &str = r#\"ort \" println!\"#;\nfn eprintln() {}\n"),
        ("src/plan/a.rs", "//! A.\nfn sort(unsafe_: u8, port: u8) { eprintln!(); }\n"),
        (
            "src/api/a.rs",
            "//! A.\nuse crate::{plan::Budget, serve::Registry};\nuse axum::Router;\n",
        ),
        ("src/telemetry/a.rs", "//! A.\nuse crate::serve::Observer;\n"),
        ("src/cli/a.rs", "//! A.\nuse crate::{api, telemetry};\nfn a() { println!(); }\n"),
        ("src/main.rs", "//! A.\nfn main() { tessera::cli::run() }\n"),
    ] {
        assert_eq!(complaints(name, text), [""; 0], "{text}");
    }
}
