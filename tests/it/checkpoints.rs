//! What libraries write beside weights is honoured, or refused by key.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};
use tessera::{
    assembly::Family,
    family::PlanId,
    runtime::{Executor, SideInputs},
};

use crate::support::{Folder, assert_close, names_in, root, runtime};

/// Largest difference of an embedding's element from sentence-transformers'.
const TOLERANCE: f64 = 2e-6;

/// Returns the folder of the case `name`.
pub(crate) fn case(name: &str) -> std::path::PathBuf {
    root().join("tests/references/sentence").join(name)
}

/// Copies the files below `from` to `to` in `folder`.
pub(crate) fn copy(folder: &mut Folder, from: &Path, to: &str) {
    for name in names_in(from) {
        let (path, to) = (from.join(&name), format!("{to}/{name}"));
        if path.is_dir() {
            copy(folder, &path, &to);
        } else if name != "expected.json" {
            folder.write(&to, &fs::read(&path).expect("read"));
        }
    }
}

/// Returns the manifest of a family of the case's files, whose output is `width` wide.
pub(crate) fn manifest(folder: &Folder, width: usize, more: &str) -> String {
    let anchor = folder.path().join("a");
    let mut text = format!(
        "name = \"texts\"\ntask = \"sentence-embedding\"\ndescription = \"A test.\"\n\
         license = \"Apache-2.0\"\nreference = \"a\"\nlimits = {{ max_tokens = 8 }}\n\
         output = {{ name = \"embedding\", width = {width} }}\n\
         quality = {{ metric = \"recall@10\", file = \"quality.json\" }}\n\
         [anchors.a]\nfolder = \"a\"\ntokenizer = \"a/tokenizer.json\"\n{more}\n\
         [anchors.a.sha256]\n"
    );
    let weights = names_in(&anchor).into_iter().map(|name| format!("{name}/model.safetensors"));
    let own = ["config.json", "model.safetensors", "tokenizer.json"].map(str::to_owned);
    for name in own.into_iter().chain(weights).filter(|name| anchor.join(name).exists()) {
        text.push_str(&format!("\"a/{name}\" = \"SHA256 a/{name}\"\n"));
    }
    text
}

/// Returns what the family's reference makes of `texts`, as rows.
fn embed(family: Arc<Family>, texts: &[&str]) -> Vec<Vec<f32>> {
    let executor = Executor::new(runtime(), family.clone());
    let tokenizer = family.tokenizer("a").expect("a tokenizer");
    let sides = SideInputs::of_encoding(tokenizer.encode(texts).expect("encoded"));
    let plan = PlanId::parse(&family.graph, "a[0..2]").expect("a plan");
    let output = executor.run(&plan, &sides.expect("inputs"), &mut ());
    let output = output.expect("the plan runs").remove(0);
    output.floats().chunks(output.shape()[1]).map(<[f32]>::to_vec).collect()
}

#[test]
fn folders_of_sentence_transformers_give_their_embeddings() {
    let names = names_in(&root().join("tests/references/sentence"));
    assert_eq!(names, ["cls", "dense", "dot", "last", "max", "prompt"]);
    for name in names {
        let expected = fs::read(case(&name).join("expected.json")).expect("read");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let mut rows: Vec<Vec<f64>> =
            serde_json::from_value(expected["embeddings"].clone()).expect("rows");
        // What is compared by the angle is given with length 1; the library leaves that open.
        for row in rows.iter_mut().filter(|_| name != "dot") {
            let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter_mut().for_each(|value| *value /= length);
        }
        let texts: Vec<&str> =
            expected["texts"].as_array().expect("texts").iter().filter_map(Value::as_str).collect();
        let mut folder = Folder::new("texts");
        copy(&mut folder, &case(&name), "a");
        let family = Arc::new(folder.load(&manifest(&folder, rows[0].len(), "")));
        let found = embed(family.clone(), &texts);
        for (index, (found, expected)) in found.iter().zip(&rows).enumerate() {
            let what = format!("{name}, text {index} beside the others");
            assert_close(found, expected, TOLERANCE, &what);
            let alone = embed(family.clone(), &texts[index..=index]).remove(0);
            assert_close(&alone, expected, TOLERANCE, &format!("{name}, text {index} alone"));
        }
    }
}

/// Loads the case `name` with `change` made to one of its files; returns the error.
fn refused(name: &str, file: &str, more: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut folder = Folder::new("texts");
    copy(&mut folder, &case(name), "a");
    let path = format!("a/{file}");
    let mut content: Value =
        serde_json::from_slice(&fs::read(folder.path().join(&path)).expect("read")).expect("JSON");
    change(&mut content);
    folder.write(&path, content.to_string().as_bytes());
    let width = if name == "dense" { 12 } else { 24 };
    let loaded = folder.try_load(&manifest(&folder, width, more));
    loaded.err().map_or_else(String::new, |error| error.to_string())
}

#[test]
fn what_is_not_supported_in_such_a_folder_is_refused_by_file_and_key() {
    let pooling = "1_Pooling/config.json";
    let wrong = [
        ("cls", pooling, "pooling_mode", json!("weightedmean"), "cls, mean, max and lasttoken"),
        ("cls", pooling, "pooling_scale", json!(2), "this key is not known"),
        ("cls", "config.json", "is_decoder", json!(true), "false is supported"),
        ("cls", "config.json", "hidden_act", json!("mish"), "gelu_new"),
        ("cls", "config.json", "embedding_scale", json!(2.0), "this key is not known"),
        ("cls", "sentence_bert_config.json", "do_lower_case", json!(true), "false is supported"),
        ("cls", "sentence_bert_config.json", "max_seq_length", json!(4), "positions for 4"),
        ("cls", "tokenizer_config.json", "model_max_length", json!(7), "positions for 7"),
        ("cls", "tokenizer_config.json", "truncation_side", json!("left"), "read with \"right\""),
        ("cls", "tokenizer_config.json", "padding_side", json!("left"), "read with \"right\""),
        ("cls", "tokenizer_config.json", "do_lower_case", json!(false), "read with true"),
        ("cls", "tokenizer_config.json", "cls_token", json!("[MASK]"), "read with \"[CLS]\""),
        ("prompt", pooling, "include_prompt", json!(false), "as a part of it"),
        ("prompt", pooling, "include_prompt", json!(null), "a value is needed"),
        ("cls", pooling, "pooling_mode", json!(["cls", "mean"]), "one of them"),
        ("last", "2_Normalize/config.json", "module_input_name", json!("x"), "sentence_embedding"),
        ("dense", "2_Dense/config.json", "activation_function", json!("torch.Mish"), "Tanh"),
        ("dense", "2_Dense/config.json", "in_features", json!(12), "gives 24"),
        ("prompt", "config_sentence_transformers.json", "truncate_dim", json!(8), "not known"),
        ("dot", "config_sentence_transformers.json", "similarity_fn_name", json!("l1"), "cosine"),
        ("prompt", "config_sentence_transformers.json", "prompts", json!({"query": 1}), "a string"),
        ("prompt", "config_sentence_transformers.json", "default_prompt_name", json!("x"), "one"),
    ];
    for (name, file, key, value, reason) in wrong {
        let error = refused(name, file, "", |content| content[key] = value);
        let is_named = error.contains(reason) && (error.contains(key) || key.contains("length"));
        assert!(is_named, "{file}, {key}: {error}");
    }
    let error = refused("cls", "modules.json", "", |modules| {
        modules[1]["type"] = "sentence_transformers.models.CNN".into();
    });
    assert!(error.contains("`[1].type` is `sentence_transformers.models.CNN`"), "{error}");
    let path = |index: usize| {
        refused("cls", "modules.json", "", |modules| modules[index]["path"] = "elsewhere".into())
    };
    let error = path(0);
    assert!(error.contains("`[0].path` is `elsewhere`"), "{error}");
    let error = path(1);
    assert!(error.contains("elsewhere/config.json"), "{error}");
}

#[test]
fn a_folder_without_modules_is_refused_for_its_texts_as_well() {
    let mut folder = Folder::new("texts");
    copy(&mut folder, &case("cls"), "a");
    fs::remove_file(folder.path().join("a/modules.json")).expect("removed");
    folder.write("a/tokenizer_config.json", br#"{"do_lower_case": false}"#);
    let error = folder.try_load(&manifest(&folder, 24, "")).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("`do_lower_case` is `false`")));
}

#[test]
fn a_list_of_one_pooling_and_a_prompt_that_no_text_has_are_read() {
    let pooling = "1_Pooling/config.json";
    let one = |content: &mut Value| content["pooling_mode"] = json!(["mean"]);
    assert_eq!(refused("cls", pooling, "", one), "");
    let outside = |content: &mut Value| content["include_prompt"] = false.into();
    assert_eq!(refused("cls", pooling, "", outside), "");
}

#[test]
fn prompts_that_pooling_leaves_out_cannot_be_named() {
    let names = |include: bool| {
        let mut folder = Folder::new("texts");
        copy(&mut folder, &case("prompt"), "a");
        let about = json!({"prompts": {"query": "the ", "document": "", "none": null}});
        folder.write("a/config_sentence_transformers.json", about.to_string().as_bytes());
        let pooling = json!({"pooling_mode": "mean", "include_prompt": include});
        folder.write("a/1_Pooling/config.json", pooling.to_string().as_bytes());
        let family = folder.load(&manifest(&folder, 24, ""));
        family.prompt_names().join(" ")
    };
    assert_eq!(names(true), "document none query");
    assert_eq!(names(false), "document none");
}

#[test]
fn a_null_is_an_absent_key_and_a_manifest_may_ignore_others() {
    let null = |content: &mut Value| content["embedding_scale"] = Value::Null;
    assert_eq!(refused("cls", "config.json", "", null), "");
    let more = "ignored_keys = [\"embedding_scale\"]";
    let scaled = |content: &mut Value| content["embedding_scale"] = 1.into();
    assert_eq!(refused("cls", "config.json", more, scaled), "");
}

/// Loads the case `name` of `kind` with a change made to its configuration; returns the error.
fn changed(kind: &str, name: &str, change: impl FnOnce(&mut Value)) -> Option<String> {
    let case = root().join("tests/references").join(kind).join(name);
    let config = fs::read(case.join("config.json")).ok()?;
    let mut folder = Folder::new("texts");
    copy(&mut folder, &case, "a");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    change(&mut config);
    folder.write("a/config.json", config.to_string().as_bytes());
    let mut text = manifest(&folder, 5, "").replace("tokenizer = \"a/tokenizer.json\"", "");
    for file in names_in(&folder.path().join("a")) {
        if !text.contains(&format!("\"a/{file}\"")) {
            text.push_str(&format!("\"a/{file}\" = \"SHA256 a/{file}\"\n"));
        }
    }
    Some(folder.try_load(&text).err().map(|error| error.to_string()).unwrap_or_default())
}

#[test]
fn every_reader_of_checkpoints_refuses_a_key_that_it_does_not_know() {
    let mut readers = 0;
    for kind in ["moe", "vit"] {
        for name in names_in(&root().join("tests/references").join(kind)) {
            let error = changed(kind, &name, |config| config["made_up"] = 3.into());
            let Some(error) = error else { continue };
            assert!(error.contains("`made_up` is `3`"), "{name}: {error}");
            readers += 1;
        }
    }
    assert!(readers >= 25, "{readers}");
}

#[test]
fn numbers_of_heads_that_do_not_fit_are_refused_by_the_key_of_their_library() {
    let key = "`num_attention_heads`";
    let wrong = |config: &mut Value| config["num_attention_heads"] = 5.into();
    let error = changed("vit", "hf-vit", wrong).expect("a case");
    assert!(error.contains(key) && error.contains("must divide hidden_size, 24"), "{error}");
    let missing = |config: &mut Value| config["num_attention_heads"] = Value::Null;
    let error = changed("vit", "hf-deit", missing).expect("a case");
    assert!(error.contains(key) && error.contains("a number is needed"), "{error}");
    let wrong = |config: &mut Value| config["model_args"]["num_heads"] = 5.into();
    let error = changed("vit", "timm", wrong).expect("a case");
    assert!(error.contains("`model_args.num_heads`"), "{error}");
}

#[test]
fn a_pooling_that_timm_does_not_read_is_refused() {
    let written = |config: &mut Value| {
        config["global_pool"] = "avg".into();
        config["pretrained_cfg"] = json!({"tag": "x"});
    };
    let error = changed("vit", "timm", written).expect("a case");
    assert!(error.contains("`global_pool` is `avg`"), "{error}");
}
