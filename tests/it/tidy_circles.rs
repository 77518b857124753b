//! No module imports another that imports it, directly or through others.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::{code_of, tested_sources};

/// Module path such as `serve::admission::queue`, as names.
type Path = Vec<String>;

/// Modules of the sources: their code without tests, by path.
struct Sources {
    codes: BTreeMap<Path, String>,
    /// Where names lead that a module re-exports.
    exports: BTreeMap<(Path, String), Path>,
}

/// Returns the module that the file `name` holds, such as `src/serve/mod.rs`.
fn module_of(name: &str) -> Path {
    let inside = name.trim_start_matches("src/").trim_end_matches(".rs");
    let path: Path = inside.split('/').map(str::to_owned).collect();
    match path.last().map(String::as_str) {
        Some("mod") => path[..path.len() - 1].to_vec(),
        Some("lib") => Vec::new(),
        _ => path,
    }
}

/// Returns the paths of a tree such as `crate::{a::B, c::{D, E}}`, each as names.
fn leaves(tree: &str) -> Vec<Path> {
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|name| name.trim().to_owned()).collect()];
    };
    let names = |text: &str| -> Path {
        let names = text.split("::").map(str::trim).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    let start = names(&tree[..open]);
    let body = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut item, mut found) = (0_i32, String::new(), Vec::new());
    for character in body.chars().chain([',']) {
        match character {
            ',' if depth == 0 => {
                let inner = std::mem::take(&mut item);
                if !inner.trim().is_empty() {
                    let joined = |leaf: Path| start.iter().cloned().chain(leaf).collect();
                    found.extend(leaves(inner.trim()).into_iter().map(joined));
                }
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        item.push(character);
    }
    found
}

/// Returns the trees of `use` declarations in `code` and whether each is public.
fn declarations(code: &str) -> Vec<(bool, &str)> {
    let starts = code.match_indices("use ").filter(|(index, _)| {
        let line = code[..*index].rsplit('\n').next().unwrap_or_default().trim();
        line.is_empty() || line.starts_with("pub")
    });
    let declaration = |(index, _): (usize, &str)| {
        let line = code[..index].rsplit('\n').next().unwrap_or_default().trim();
        let rest = &code[index + "use ".len()..];
        (line.starts_with("pub"), &rest[..rest.find(';').unwrap_or(rest.len())])
    };
    starts.map(declaration).collect()
}

impl Sources {
    /// Reads modules from files by name.
    fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut codes = BTreeMap::new();
        for (name, text) in files {
            codes.insert(module_of(name), code_of(text));
        }
        let mut sources = Self { codes, exports: BTreeMap::new() };
        let mut exports = BTreeMap::new();
        for (module, code) in &sources.codes {
            for (_, tree) in declarations(code).into_iter().filter(|(is_public, _)| *is_public) {
                for leaf in leaves(tree) {
                    let name = leaf.last().cloned().unwrap_or_default();
                    if let Some(path) = sources.absolute(&leaf, module) {
                        exports.insert((module.clone(), name), path);
                    }
                }
            }
        }
        sources.exports = exports;
        sources
    }

    /// Returns a path as it is written in `module` from the root, or None if it leads elsewhere.
    fn absolute(&self, path: &[String], module: &Path) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let joined = |start: &[String], rest: &[String]| -> Path {
            start.iter().chain(rest).cloned().collect()
        };
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(joined(module, rest)),
            "super" => {
                let num_up = path.iter().take_while(|name| *name == "super").count();
                let parent = &module[..module.len().checked_sub(num_up)?];
                Some(joined(parent, &path[num_up..]))
            }
            _ => {
                let child = joined(module, std::slice::from_ref(first));
                self.codes.contains_key(&child).then(|| joined(module, path))
            }
        }
    }

    /// Returns the module in which the end of `path` is defined, following re-exports.
    fn definition(&self, path: &[String]) -> Path {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let num = (0..=path.len()).rev().find(|n| self.codes.contains_key(&path[..*n]));
            let (module, rest) = path.split_at(num.unwrap_or(0));
            let next = rest.first().and_then(|name| {
                let export = self.exports.get(&(module.to_vec(), name.clone()))?;
                Some(export.iter().chain(&rest[1..]).cloned().collect())
            });
            match next {
                Some(next) => path = next,
                None => return module.to_vec(),
            }
        }
        Path::new()
    }

    /// Returns the modules that each module imports.
    fn imports(&self) -> BTreeMap<&Path, BTreeSet<Path>> {
        let of = |(module, code): (&'_ Path, &String)| -> BTreeSet<Path> {
            let declared = declarations(code);
            let private = declared.iter().filter(|(is_public, _)| !is_public);
            let declared: Vec<Path> = private.flat_map(|(_, tree)| leaves(tree)).collect();
            let paths = declared.into_iter().chain(inline(code));
            let found = paths.filter_map(|path| self.absolute(&path, module));
            found.map(|path| self.definition(&path)).filter(|other| other != module).collect()
        };
        self.codes.iter().map(|(module, code)| (module, of((module, code)))).collect()
    }

    /// Returns the modules that lie on a circle of imports, or between circles.
    fn circles(&self) -> Vec<String> {
        let mut left = self.imports();
        loop {
            let known: BTreeSet<&Path> = left.keys().copied().collect();
            let is_end = |others: &BTreeSet<Path>| !others.iter().any(|o| known.contains(o));
            let imported: BTreeSet<&Path> = left.values().flatten().collect();
            let ends: Vec<&Path> = left
                .iter()
                .filter(|(module, others)| is_end(others) || !imported.contains(*module))
                .map(|(module, _)| *module)
                .collect();
            if ends.is_empty() {
                return left.keys().map(|module| module.join("::")).collect();
            }
            ends.iter().for_each(|module| drop(left.remove(*module)));
        }
    }
}

/// Returns the paths outside of declarations that start at the root or at a parent.
fn inline(code: &str) -> Vec<Path> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (index, _) in code.match_indices(start) {
            let before = &code[..index];
            let line = before.rsplit('\n').next().unwrap_or_default();
            let is_inside = before.ends_with("::") || line.contains("use ");
            let end = code[index..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            let path = &code[index..end.map_or(code.len(), |end| index + end)];
            if !is_inside && !path.ends_with(':') {
                found.push(path.split("::").map(str::to_owned).collect());
            }
        }
    }
    found
}

#[test]
fn no_module_imports_itself_through_others() {
    let texts = tested_sources();
    let sources = Sources::new(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    assert!(sources.imports().values().map(BTreeSet::len).sum::<usize>() > 500, "imports found");
    assert_eq!(sources.circles(), [""; 0]);
}

#[test]
fn circles_are_found() {
    let circle = |files: &[(&str, &str)]| Sources::new(files.iter().copied()).circles();
    let direct = [("src/a/b.rs", "use super::c::C;"), ("src/a/c.rs", "fn f(x: super::b::B) {}")];
    assert_eq!(circle(&direct), ["a::b", "a::c"]);
    let through_export = [
        ("src/a/mod.rs", "pub use b::{B, other};"),
        ("src/a/b.rs", "use super::c::C;"),
        ("src/a/c.rs", "use crate::{a::B, d};"),
        ("src/d.rs", ""),
    ];
    assert_eq!(circle(&through_export), ["a::b", "a::c"]);
    let tree = [("src/a/b.rs", "use crate::{a::{c::C}};"), ("src/a/c.rs", "//! See crate::a::b.")];
    assert_eq!(circle(&tree), [""; 0]);
}
