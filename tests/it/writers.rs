//! Runs that write into a family and are killed: they leave it as it was, and the next ends well.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tessera::{
    assembly::Family,
    family::{Manifest, PlanId},
    fit::{Dataset, FitError, FitOptions, fit_maps},
    input::{Encoding, ModelInput},
    pool::{Disk, FamilyWriter, FileSystem, FitRecords, PoolError},
    runtime::{Executor, SideInputs},
};

use crate::support::{
    idle::Idle,
    runtime,
    synthetic::{EXIT, MLP, STITCH, Synthetic, WEIGHTS, WORDS},
};

/// A disk that a process reaches for some steps before it is killed. What follows has no effect.
#[derive(Debug)]
struct Dying {
    num_left: Mutex<usize>,
}

impl Dying {
    fn after(num_steps: usize) -> Arc<Self> {
        Arc::new(Self { num_left: Mutex::new(num_steps) })
    }

    fn is_dead(&self) -> bool {
        *self.num_left.lock().expect("the lock") == 0
    }

    fn step(&self) -> io::Result<()> {
        let mut left = self.num_left.lock().expect("the lock");
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
        Ok(())
    }
}

impl Disk for Dying {
    fn fill(&self, file: &mut File, path: &Path, content: &[u8]) -> io::Result<()> {
        match self.step() {
            Ok(()) => FileSystem.fill(file, path, content),
            Err(killed) => {
                file.write_all(&content[..content.len() / 2])?;
                Err(killed)
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step().and_then(|()| FileSystem.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step().and_then(|()| FileSystem.remove(path))
    }
}

fn texts(family: &Synthetic) -> Dataset {
    let line = |number: usize| {
        let word = |step: usize| WORDS[4 + (number / step + number) % 5];
        let text = format!("{} {} {} {}", word(1), word(3), word(7), word(11));
        json!({"id": number.to_string(), "text": text}).to_string()
    };
    let lines: Vec<String> = (0..200).map(line).collect();
    let file = family.pool().join("texts.jsonl");
    fs::write(&file, lines.join("\n")).expect("written");
    let manifest = Manifest::read(&family.folder).expect("read");
    Dataset::read(&file, None, &manifest, None).expect("texts")
}

fn refitted(max_tokens: usize) -> FitOptions {
    FitOptions { refit: true, max_tokens, ..FitOptions::default() }
}

fn fit(
    family: &Synthetic,
    writer: Result<FamilyWriter, PoolError>,
    options: &FitOptions,
) -> Result<usize, FitError> {
    fit_maps(&runtime(), &mut writer?, &texts(family), options, &())
}

fn begin(family: &Synthetic) -> Result<FamilyWriter, PoolError> {
    FamilyWriter::begin(&family.folder)
}

/// Returns the names of the files of `fits/`, as records have them.
fn fitted_files(family: &Synthetic) -> BTreeSet<String> {
    let entries = fs::read_dir(family.folder.join("fits")).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names.map(|name| format!("fits/{}", name.to_string_lossy())).collect()
}

/// Asserts that there are the files that are in use and were before, and nothing else.
#[track_caller]
fn assert_clear(family: &Synthetic) {
    let records = FitRecords::read(&family.folder).expect("records");
    let mut expected: BTreeSet<String> = records.superseded.clone();
    expected.extend(records.files().map(|file| file.location.to_owned()));
    assert_eq!(fitted_files(family), expected);
    let names = fs::read_dir(&family.folder).expect("a folder").map(|entry| entry.expect("entry"));
    let litter: Vec<_> =
        names.filter(|entry| entry.file_name().as_encoded_bytes()[0] == b'.').collect();
    assert!(litter.is_empty(), "{litter:?}");
}

/// Leaves what a killed run of this version and of an older one leave.
fn litter(family: &Synthetic) {
    family.write(".writing-tessera-Ab3dEf", b"half");
    family.write("fits/.writing-Ab3dEf", b"half");
    family.write("fits/a.1-out.0123456789abcdef.safetensors", b"half");
}

#[test]
fn too_few_texts_are_refused_before_any_work() {
    let family = Synthetic::new();
    let before = family.text("fits.json");
    texts(&family);
    let (file, manifest) = (family.pool().join("texts.jsonl"), Manifest::read(&family.folder));
    let few = Dataset::read(&file, None, &manifest.expect("read"), Some(144)).expect("texts");
    let mut writer = begin(&family).expect("nobody else writes");
    let options = refitted(16);
    let error = fit_maps(&runtime(), &mut writer, &few, &options, &Idle).expect_err("few");
    let message = error.to_string();
    assert!(message.ends_with("needs at least 145 texts, but there are 144"), "{message}");
    assert_eq!(family.text("fits.json"), before);
}

#[test]
fn a_fit_that_is_killed_at_any_step_leaves_the_family_as_it_was() {
    let (mut num_before, mut num_after) = (0, 0);
    for num_steps in 0.. {
        let family = Synthetic::new();
        let before = family.text("fits.json");
        litter(&family);
        let disk = Dying::after(num_steps);
        let is_done =
            fit(&family, FamilyWriter::begin_on(disk.clone(), &family.folder), &refitted(16));
        let is_killed = disk.is_dead();
        if family.text("fits.json") == before {
            num_before += 1;
            assert!(is_killed && is_done.is_err(), "step {num_steps}");
            for file in [STITCH, MLP, EXIT] {
                assert!(fitted_files(&family).contains(file), "step {num_steps}: {file}");
            }
        } else {
            num_after += 1;
            assert_eq!(is_done.expect("committed"), 3, "step {num_steps}");
        }
        family.load();
        assert_eq!(fit(&family, begin(&family), &refitted(16)).expect("the next ends well"), 3);
        family.load();
        assert_clear(&family);
        if !is_killed {
            break;
        }
    }
    println!("killed before the commit {num_before} times, after it {num_after} times");
    assert!(num_before >= 10 && num_after >= 2);
}

#[test]
fn a_first_fit_that_is_killed_at_any_step_leaves_no_fits() {
    for num_steps in 0.. {
        let family = Synthetic::new();
        fs::remove_dir_all(family.folder.join("fits")).expect("removed");
        fs::remove_file(family.folder.join("fits.json")).expect("removed");
        let disk = Dying::after(num_steps);
        let options = FitOptions { max_tokens: 16, ..FitOptions::default() };
        let is_done = fit(&family, FamilyWriter::begin_on(disk.clone(), &family.folder), &options);
        let num_maps = FitRecords::read(&family.folder).expect("read").maps.len();
        assert_eq!(num_maps, if is_done.is_ok() { 3 } else { 0 }, "step {num_steps}");
        family.load();
        let num_due = 3 - num_maps;
        assert_eq!(fit(&family, begin(&family), &options).expect("ends well"), num_due);
        family.load();
        assert_clear(&family);
        if !disk.is_dead() {
            break;
        }
    }
}

#[test]
fn qualities_are_replaced_whole_or_not_at_all() {
    for (num_steps, expected) in [(0, "old"), (1, "old"), (2, "new")] {
        let family = Synthetic::new();
        family.write("quality.json", b"old");
        let writer = FamilyWriter::begin_on(Dying::after(num_steps), &family.folder);
        let written = writer.expect("begun").replace(Path::new("quality.json"), b"new");
        assert_eq!(written.is_ok(), expected == "new");
        assert_eq!(family.text("quality.json"), expected);
        drop(begin(&family).expect("begun"));
        assert_clear(&family);
    }
}

#[test]
fn a_fit_mends_fits_that_do_not_load() {
    type Break = fn(&Synthetic);
    let breaks: [(&str, usize, Break); 5] = [
        ("a truncated file", 1, |family| family.write(STITCH, b"short")),
        ("a missing file", 1, |family| {
            fs::remove_file(family.folder.join(MLP)).expect("removed");
        }),
        ("a folder in a file's place", 1, |family| {
            fs::remove_file(family.folder.join(EXIT)).expect("removed");
            fs::create_dir(family.folder.join(EXIT)).expect("made");
        }),
        ("a record that does not parse", 3, |family| family.write("fits.json", b"{\"maps\": {")),
        ("a record that is not UTF-8", 3, |family| family.write("fits.json", b"\xff\xfe\0")),
    ];
    for (what, num_due, break_it) in breaks {
        let family = Synthetic::new();
        break_it(&family);
        assert!(Family::load(&family.folder).is_err(), "{what}");
        let options = FitOptions { max_tokens: 16, ..FitOptions::default() };
        assert_eq!(fit(&family, begin(&family), &options).expect(what), num_due, "{what}");
        family.load();
    }
}

#[test]
fn two_runs_do_not_write_at_once() {
    let family = Synthetic::new();
    let first = begin(&family).expect("begun");
    let refused = begin(&family).expect_err("refused").to_string();
    assert!(refused.contains("another run of tessera writes there"), "{refused}");
    drop(first);
    begin(&family).expect("the first has ended");
}

#[test]
fn sessions_of_the_version_before_can_be_made_until_the_next_commit_but_one() {
    let family = Synthetic::new();
    let old = family.load();
    let run = || {
        let path = PlanId::parse(&old.graph, "b[0..1]>a[1..2]").expect("a path");
        let encoding =
            Encoding { batch: 1, tokens: 3, input_ids: vec![2, 5, 3], attention_mask: vec![1; 3] };
        let sides = SideInputs::of_input(ModelInput::Tokens(encoding)).expect("inputs");
        // New sessions each time, as after an eviction.
        Executor::new(runtime(), old.clone()).run(&path, &sides, &mut ())
    };
    run().expect("runs");
    fit(&family, begin(&family), &refitted(16)).expect("fitted");
    drop(begin(&family).expect("another run clears up"));
    run().expect("still runs");
    fit(&family, begin(&family), &refitted(3)).expect("fitted again");
    let error = run().expect_err("its file is gone").to_string();
    assert!(error.contains("load the family again"), "{error}");
    assert_clear(&family);
}

#[test]
fn a_fit_of_values_that_overflow_is_refused_and_changes_nothing() {
    let family = Synthetic::new();
    let before: Value = serde_json::from_str(&family.text("fits.json")).expect("JSON");
    family.change(WEIGHTS, |tensors| {
        let (_, values) = tensors.get_mut("embeddings.word_embeddings.weight").expect("a table");
        values.fill(f32::INFINITY);
    });
    let error = fit(&family, begin(&family), &refitted(16)).expect_err("refused").to_string();
    assert!(error.contains("cannot be solved"), "{error}");
    let after: Value = serde_json::from_str(&family.text("fits.json")).expect("JSON");
    assert_eq!(after, before);
    family.load();
    assert_clear(&family);
}
