//! Tests of constraints, with tokens drawn at random from those that are allowed.

use serde_json::Value;

use super::*;
use crate::input::{SpecialText, TokenKind, VocabularySpec};

/// Returns the vocabulary of `tools/tokens_reference.py`.
fn coder() -> TextCoder {
    coder_with(&[])
}

/// Returns the vocabulary with further special tokens.
pub(super) fn coder_with(specials: &[&str]) -> TextCoder {
    let json = include_str!("../../../../tests/references/tokens/vocabulary.json");
    let json: Value = serde_json::from_str(json).expect("the file of the script");
    let texts =
        |key: &str| -> Vec<String> { serde_json::from_value(json[key].clone()).expect("texts") };
    let kinds: Vec<i32> = serde_json::from_value(json["kinds"].clone()).expect("kinds");
    let specials = specials.iter().map(|text| (*text).to_owned());
    let kinds = kinds.into_iter().filter_map(TokenKind::from_code);
    let spec = VocabularySpec {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens: texts("tokens").into_iter().chain(specials.clone()).collect(),
        token_kinds: kinds.chain(specials.map(|_| TokenKind::Control)).collect(),
        merges: texts("merges"),
        eos_id: Some(2),
        ..VocabularySpec::default()
    };
    TextCoder::from_vocabulary(&spec).expect("valid")
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Returns an answer of at most `max_tokens` random allowed tokens, and whether it ended.
fn answer(
    coder: &TextCoder,
    constraint: &mut Constraint,
    random: &mut Random,
    max_tokens: usize,
) -> (String, bool) {
    let mut ids = Vec::new();
    for _ in 0..max_tokens {
        let mask = constraint.allowed().expect("in time");
        let allowed: Vec<u32> = coder.ids().filter(|id| mask.allows(*id)).collect();
        assert!(!allowed.is_empty(), "no token is allowed");
        let limit = u64::try_from(allowed.len()).expect("few");
        let token = allowed[usize::try_from(random.below(limit)).expect("few")];
        if coder.ends().contains(&token) {
            return (coder.decode(&ids, SpecialText::Text), true);
        }
        constraint.push(token).expect("it is allowed");
        ids.push(token);
    }
    (coder.decode(&ids, SpecialText::Text), false)
}

/// Returns a random schema, `depth` levels deep at most.
fn schema(random: &mut Random, depth: u64) -> Value {
    match random.below(if depth == 0 { 5 } else { 8 }) {
        0 => json!({"type": "integer", "minimum": -5, "maximum": random.below(1000)}),
        1 => json!({"type": "boolean"}),
        2 => json!({"enum": ["a", 1, null, "\"é"]}),
        3 => json!({"type": "string", "maxLength": random.below(6)}),
        4 => json!({"type": ["null", "boolean"]}),
        5 => {
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": random.below(2),
            "maxItems": 1 + random.below(2)})
        }
        6 => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
        _ => {
            let fields = ["x", "a b", "名", "q\"uote"];
            let num_fields = usize::try_from(1 + random.below(4)).expect("few");
            let properties: serde_json::Map<String, Value> = fields[..num_fields]
                .iter()
                .map(|name| ((*name).to_owned(), schema(random, depth - 1)))
                .collect();
            let required = &fields[..num_fields.div_ceil(2)];
            json!({"type": "object", "properties": properties, "required": required,
                "additionalProperties": false})
        }
    }
}

/// Returns whether `value` is of `schema`, which [`schema`](fn@schema) made.
fn is_valid(schema: &Value, value: &Value) -> bool {
    let number = |key: &str| schema.get(key).and_then(Value::as_u64);
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        return options.iter().any(|option| is_valid(option, value));
    }
    if let Some(options) = schema.get("enum").and_then(Value::as_array) {
        return options.contains(value);
    }
    match (schema["type"].as_str(), value) {
        (Some("integer"), Value::Number(found)) => {
            // `-0` is an integer too, which the library reads as a float.
            let range = schema["maximum"].as_f64().map(|most| -5.0..=most);
            let found = found.as_f64().filter(|found| found.fract() == 0.0);
            found.zip(range).is_some_and(|(found, range)| range.contains(&found))
        }
        (Some("boolean"), Value::Bool(_)) | (None, Value::Null | Value::Bool(_)) => true,
        (Some("string"), Value::String(text)) => {
            number("maxLength").is_some_and(|most| text.chars().count() as u64 <= most)
        }
        (Some("array"), Value::Array(items)) => {
            let range = number("minItems").zip(number("maxItems"));
            range.is_some_and(|(least, most)| (least..=most).contains(&(items.len() as u64)))
                && items.iter().all(|item| is_valid(&schema["items"], item))
        }
        (Some("object"), Value::Object(fields)) => {
            let required = schema["required"].as_array().expect("a list");
            let has = |name: &Value| name.as_str().is_some_and(|name| fields.contains_key(name));
            required.iter().all(has)
                && fields.iter().all(|(name, value)| {
                    let own = schema["properties"].get(name);
                    own.is_some_and(|own| is_valid(own, value))
                })
        }
        _ => false,
    }
}

/// Number of schemas that are tried.
const NUM_SCHEMAS: u64 = 1000;

#[test]
fn answers_of_random_schemas_are_valid() {
    let coder = coder();
    let grammars = Grammars::new(&coder).expect("a vocabulary");
    let mut random = Random(1);
    let mut num_ended = 0;
    for _ in 0..NUM_SCHEMAS {
        let schema = schema(&mut random, 3);
        let mut constraint =
            grammars.constraint(&Grammar::JsonSchema(schema.clone())).expect("valid");
        let (text, has_ended) = answer(&coder, &mut constraint, &mut random, 200);
        if has_ended {
            num_ended += 1;
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
                panic!("{error}: {text:?} of {schema}");
            });
            assert!(is_valid(&schema, &value), "{text:?} of {schema}");
        }
    }
    assert!(num_ended * 10 >= NUM_SCHEMAS * 9, "{num_ended} of {NUM_SCHEMAS} answers ended");
}

#[test]
fn expressions_choices_and_grammars_are_kept() {
    let coder = coder();
    let grammars = Grammars::new(&coder).expect("a vocabulary");
    let mut random = Random(2);
    let mut of = |grammar: &Grammar| {
        let mut constraint = grammars.constraint(grammar).expect("valid");
        answer(&coder, &mut constraint, &mut random, 100).0
    };
    let choices = ["yes", "<no> (not.*)", "vielleicht — später"].map(str::to_owned);
    for _ in 0..20 {
        let found = of(&Grammar::Choice(choices.to_vec()));
        assert!(choices.contains(&found), "{found}");
        let found = of(&Grammar::Regex("[0-9]{2}-[a-c]{1,3}".into()));
        let (digits, letters) = found.split_once('-').expect("a dash");
        assert!(digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        assert!((1..=3).contains(&letters.len()) && letters.bytes().all(|byte| byte <= b'c'));
        let found = of(&Grammar::Lark("start: \"<\" /[ab]{1,2}/ \">\"".into()));
        assert!(found.starts_with('<') && found.ends_with('>') && found.len() <= 4, "{found}");
    }
}

#[test]
fn special_tokens_are_not_drawn_for_texts() {
    let coder = coder();
    let grammars = Grammars::new(&coder).expect("a vocabulary");
    let mut constraint = grammars.constraint(&Grammar::Regex("(.|\n)*".into())).expect("valid");
    let mask = constraint.allowed().expect("in time");
    for id in coder.ids().filter(|id| coder.is_special(*id)) {
        assert_eq!(mask.allows(id), coder.ends().contains(&id), "{id}");
    }
}

#[test]
fn a_complete_answer_can_only_end() {
    let coder = coder();
    let grammars = Grammars::new(&coder).expect("a vocabulary");
    let mut constraint = grammars.constraint(&Grammar::Choice(vec!["a".into()])).expect("valid");
    let a = coder.encode("a", SpecialText::Text).unwrap()[0];
    assert!(constraint.push(coder.encode("b", SpecialText::Text).unwrap()[0]).is_err());
    let mut constraint = grammars.constraint(&Grammar::Choice(vec!["a".into()])).expect("valid");
    constraint.push(a).expect("allowed");
    let mask = constraint.allowed().expect("in time");
    let allowed: Vec<u32> = coder.ids().filter(|id| mask.allows(*id)).collect();
    assert_eq!(allowed, coder.ends());
    constraint.push(2).expect("an end");
}

#[test]
fn grammars_that_cannot_be_kept_are_refused() {
    let grammars = Grammars::new(&coder()).expect("a vocabulary");
    let error = |grammar: &Grammar| match grammars.constraint(grammar) {
        Ok(_) => panic!("{grammar:?} is taken"),
        Err(error) => error.to_string(),
    };
    let schema = error(&Grammar::JsonSchema(json!({"type": "no such"})));
    assert!(schema.starts_with("the JSON schema is not valid: "), "{schema}");
    assert!(error(&Grammar::Regex("(".into())).contains("regular expression"));
    assert!(error(&Grammar::Lark("start: nothing".into())).contains("grammar"));
    let long = error(&Grammar::Regex("a".repeat(70_000)));
    assert_eq!(long, "the number of its bytes is 70000; valid is up to 65536");
    let many = error(&Grammar::Choice(vec!["a".into(); 1001]));
    assert_eq!(many, "the number of choices is 1001; valid is up to 1000");
}
