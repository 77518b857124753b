//! Files that are larger than their kind may be are refused before they are read.

use std::{
    error::Error,
    fs::{self, File},
    path::Path,
    process::Command,
};

use tessera::{
    api::{Clients, Tls, TlsFiles},
    bench::Arrivals,
    fit::Corpus,
    offer::{MachineKey, ProfileCache, QualityRecords, ShippedProfiles},
    pool::{Checkpoint, PoolError},
    tensor::{FileKind, chain},
};

use crate::support::{
    root,
    synthetic::{CONFIG, Synthetic, TOKENIZER},
};

/// Makes the file at `path` longer by holes, so that it is too large for its kind.
fn enlarge(path: &Path, kind: FileKind) {
    let file = File::options().append(true).create(true).open(path).expect("opened");
    file.set_len(kind.max_bytes() + 1).expect("made longer");
}

/// Checks that `error` names the file, its size and the limit.
fn assert_named(error: &str, path: &Path, kind: FileKind) {
    let (size, max) = (kind.max_bytes() + 1, kind.max_bytes());
    let sizes = format!("it has {size} bytes, but {kind} has at most {max}");
    let is_named = error.contains(&path.display().to_string()) && error.contains(&sizes);
    assert!(is_named, "{error}");
}

#[test]
fn files_of_a_family_are_refused() {
    let own = [
        (CONFIG, FileKind::Config),
        (TOKENIZER, FileKind::Tokenizer),
        ("family.toml", FileKind::Manifest),
        ("fits.json", FileKind::Records),
    ];
    let beside = [
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    ];
    let folder = root().join("tests/references/sentence/cls");
    let written = |synthetic: &Synthetic, file: &str| {
        let content = fs::read(folder.join(file)).expect("read");
        synthetic.write(&format!("anchors/a/{file}"), &content);
    };
    let all = own.map(|(file, kind)| (file.to_owned(), kind));
    let beside_all = beside.map(|file| (format!("anchors/a/{file}"), FileKind::Config));
    for (file, kind) in all.into_iter().chain(beside_all) {
        let family = Synthetic::new();
        for name in beside {
            written(&family, name);
        }
        let path = family.folder.join(&file);
        enlarge(&path, kind);
        assert_named(&family.refusal(), &path, kind);
    }
}

#[test]
fn records_and_indexes_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let machine =
        MachineKey { processor: "one".into(), num_threads: 1, spin: false, runtime: String::new() };
    let cache = machine.file(folder.path());
    let cache = cache.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    type Read<'a> = &'a dyn Fn(&Path) -> Option<PoolError>;
    let read: [(&str, FileKind, Read<'_>); 4] = [
        ("quality.json", FileKind::Records, &|path| QualityRecords::read(path).err()),
        ("profile.json", FileKind::Records, &|path| ShippedProfiles::read(path).err()),
        (&cache, FileKind::Records, &|path| {
            ProfileCache::read(path.parent()?, machine.clone()).err()
        }),
        ("model.safetensors.index.json", FileKind::ShardIndex, &|path| {
            let (folder, name) = (path.parent()?, Path::new(path.file_name()?));
            Checkpoint::open_sharded(folder, name, |_| Ok("")).err()
        }),
    ];
    for (name, kind, read) in read {
        let path = folder.path().join(name);
        enlarge(&path, kind);
        assert_named(&chain(&read(&path).expect(name)), &path, kind);
    }
}

#[test]
fn files_that_options_name_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    type Read<'a> = &'a dyn Fn(&Path) -> Option<Box<dyn Error>>;
    let read: [(FileKind, Read<'_>); 4] = [
        (FileKind::Clients, &|path| Some(Clients::read(path).err()?.into())),
        (FileKind::Trace, &|path| Some(Arrivals::read_trace(path).err()?.into())),
        (FileKind::Examples, &|path| Some(Corpus::read(path, None).err()?.into())),
        (FileKind::Pem, &|path| {
            let (certificate, key) = (path.to_owned(), path.to_owned());
            Some(Tls::read(TlsFiles { certificate, key, client_authority: None }).err()?.into())
        }),
    ];
    for (kind, read) in read {
        fs::write(&path, "").expect("written");
        enlarge(&path, kind);
        assert_named(&chain(&*read(&path).expect("refused")), &path, kind);
    }
    for (kind, option, command) in [
        (FileKind::Options, "--config", &["serve", "--check-config"][..]),
        (FileKind::Labels, "--labels", &["import", "a.onnx", "--family", "a"]),
    ] {
        fs::write(&path, "").expect("written");
        enlarge(&path, kind);
        let run = Command::new(env!("CARGO_BIN_EXE_tessera"))
            .args(command)
            .arg(option)
            .arg(&path)
            .output()
            .expect("it starts");
        assert!(!run.status.success());
        assert_named(&String::from_utf8_lossy(&run.stderr), &path, kind);
    }
}
