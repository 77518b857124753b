//! Tests of strict JSON.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, value::RawValue};

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
struct Point {
    x: i32,
    y: Option<i32>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Form {
    Empty {},
    Named {
        #[serde(deserialize_with = "object")]
        point: Point,
    },
}

#[derive(Debug, PartialEq, Deserialize)]
enum Outer {
    Unit,
    Struct { x: i32 },
}

#[derive(Debug, PartialEq, Deserialize)]
struct Holder<'t> {
    #[serde(default)]
    points: Vec<Point>,
    #[serde(default)]
    weights: BTreeMap<u32, f32>,
    #[serde(default, deserialize_with = "optional_object")]
    form: Option<Form>,
    outer: Option<Outer>,
    any: Option<Value>,
    text: Option<&'t str>,
}

fn told(text: &str) -> String {
    parse::<Holder<'_>>(text).map(drop).expect_err(text).to_string()
}

#[test]
fn what_is_written_once_is_read() {
    let text = r#"{"points": [{"x": 1, "y": 2}, {"x": 3}], "weights": {"1": 0.5, "2": 1},
        "form": {"type": "named", "point": {"x": 1}}, "outer": {"Struct": {"x": 2}},
        "any": {"a": [{"a": 1}, {"a": 2}]}, "text": "a"}"#;
    let point = |x, y| Point { x, y };
    let holder = Holder {
        points: vec![point(1, Some(2)), point(3, None)],
        weights: BTreeMap::from([(1, 0.5), (2, 1.0)]),
        form: Some(Form::Named { point: point(1, None) }),
        outer: Some(Outer::Struct { x: 2 }),
        any: Some(serde_json::json!({"a": [{"a": 1}, {"a": 2}]})),
        text: Some("a"),
    };
    assert_eq!(parse::<Holder<'_>>(text).expect("it is valid"), holder);
    assert_eq!(parse::<Outer>("\"Unit\"").expect("a variant"), Outer::Unit);
    assert_eq!(parse::<(i32, bool)>("[1, true]").expect("a tuple"), (1, true));
    let raw: &RawValue = parse(r#"{"a": 1}"#).expect("JSON");
    assert_eq!(raw.get(), r#"{"a": 1}"#);
}

#[test]
fn a_name_that_is_there_twice_is_refused() {
    for (text, name) in [
        (r#"{"any": 1, "any": 2}"#, "any"),
        (r#"{"other": 1, "other": 2}"#, "other"),
        (r#"{"points": [{"x": 1, "z": 1, "\u007a": 1}]}"#, "z"),
        (r#"{"weights": {"1": 1, "1": 1}}"#, "1"),
        (r#"{"form": {"type": "empty", "type": "named"}}"#, "type"),
        (r#"{"form": {"type": "named", "point": {"x": 1, "x": 1}}}"#, "x"),
        (r#"{"outer": {"Struct": {"x": 1, "x": 1}}}"#, "x"),
        (r#"{"any": [[{"a": {"b": 1, "b": 1}}]]}"#, "b"),
        // Nobody reads the value.
        (r#"{"other": [{"a": {"c": 1, "c": 1}}]}"#, "c"),
    ] {
        assert!(told(text).contains(&format!("duplicate field `{name}`")), "{}", told(text));
    }
    let name = "é".repeat(99);
    let error = told(&format!("{{\"any\": {{\"{name}\": 1, \"{name}\": 1}}}}"));
    assert!(error.contains(&format!("`{}`", "é".repeat(MAX_NAME / 2))), "{error}");
}

#[test]
fn an_array_is_no_struct() {
    for text in [
        r#"[[], {}, null, null, null, null]"#,
        r#"{"points": [[1, 2]]}"#,
        r#"{"form": ["empty"]}"#,
        r#"{"form": {"type": "named", "point": [1, 2]}}"#,
        r#"{"outer": {"Struct": [1]}}"#,
    ] {
        let error = told(text);
        assert!(error.contains("invalid type: sequence"), "{text}: {error}");
    }
    assert!(told("{} {}").contains("trailing characters"));
}

proptest! {
    #[test]
    fn any_value_is_read_as_it_was_written(
        text in "(\\{\"[a-c]\":(1|\"x\"|null|\\[2,\\{\\}\\])(,\"[a-c]\":\\{\"[ab]\":7\\})?\\})"
    ) {
        let loose: Value = serde_json::from_str(&text).expect("JSON");
        let written = text.matches("\":").count();
        let count = |value: &Value| value.to_string().matches("\":").count();
        match parse::<Value>(&text) {
            Ok(value) => prop_assert_eq!((count(&value), value), (written, loose)),
            Err(error) => {
                prop_assert!(error.to_string().contains("duplicate field"));
                prop_assert!(count(&loose) < written);
            }
        }
    }
}

#[test]
fn what_is_only_checked_has_distinct_names_too() {
    check(r#"{"a": [1, -1, 1.5, "b", true, null, {"a": {}}], "b": {"a": []}}"#).expect("distinct");
    for bad in [r#"{"a": 1, "a": 1}"#, r#"[{"b": [{"a": {}, "a": []}]}]"#] {
        assert!(check(bad).expect_err("two values").to_string().contains("`a`"), "{bad}");
    }
    assert!(check("[1").is_err() && check("1 2").is_err());
}
