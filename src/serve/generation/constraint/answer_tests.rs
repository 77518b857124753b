//! Tests of the grammars of answers with parts.

use super::{
    super::{Constraint, Grammar, Grammars, tests::coder_with},
    *,
};
use crate::input::{SpecialText, TextCoder};

fn functions() -> Vec<CallableFunction> {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Ulm", "Rom"]}},
                      "required": ["city"], "additionalProperties": false});
    let none = json!({"properties": {}, "additionalProperties": false});
    let function = |name: &str, parameters| CallableFunction { name: name.into(), parameters };
    vec![function("weather", city), function("now", none)]
}

fn calls(format: CallFormat, is_parallel: bool) -> Option<CallGrammar> {
    Some(CallGrammar { format, functions: functions(), is_parallel })
}

fn forced(format: CallFormat, is_parallel: bool) -> AnswerGrammar {
    let calls = calls(format, is_parallel);
    AnswerGrammar { in_thought: false, calls, other: Other::Nothing }
}

/// Constraints over a vocabulary.
struct Reader {
    coder: TextCoder,
    grammars: Grammars,
}

impl Reader {
    fn new(specials: &[&str]) -> Self {
        let coder = coder_with(specials);
        let grammars = Grammars::new(&coder).expect("a vocabulary");
        Self { coder, grammars }
    }

    /// Returns whether `text` may be an answer, and whether one may go on with it.
    fn takes(&self, grammar: &AnswerGrammar, text: &str) -> (bool, bool) {
        let grammar = Grammar::Answer(grammar.clone());
        let mut constraint: Constraint = self.grammars.constraint(&grammar).expect("valid");
        for token in self.coder.encode(text, SpecialText::Tokens).expect("tokens") {
            if !constraint.allowed().expect("in time").allows(token) {
                return (false, false);
            }
            constraint.push(token).expect("it is allowed");
        }
        let end = self.coder.ends()[0];
        (constraint.allowed().expect("in time").allows(end), !constraint.is_complete())
    }
}

const ULM: &str = r#"{"name": "weather", "arguments": {"city": "Ulm"}}"#;
const NOW: &str = r#"{"name": "now", "arguments": {}}"#;

fn hermes(call: &str) -> String {
    format!("<tool_call>\n{call}\n</tool_call>")
}

#[test]
fn a_call_that_must_be_made_has_a_name_and_arguments_of_a_tool() {
    let reader = Reader::new(&[]);
    let one = forced(CallFormat::Hermes, false);
    for call in [ULM, NOW] {
        assert_eq!(reader.takes(&one, &hermes(call)), (true, false), "{call}");
    }
    for wrong in ["x", r#"{"name": "other"#, r#"{"name": "now", "arguments": {"x"#] {
        let text = hermes(wrong);
        assert_eq!(reader.takes(&one, text.trim_end_matches("\n</tool_call>")), (false, false));
    }
    let two = format!("{}\n{}", hermes(ULM), hermes(NOW));
    assert_eq!(reader.takes(&one, &two), (false, false));
    let several = forced(CallFormat::Hermes, true);
    assert_eq!(reader.takes(&several, &hermes(NOW)), (true, true));
    assert_eq!(reader.takes(&several, &two), (true, true));
    assert_eq!(reader.takes(&several, &format!("{two}\nx")), (false, false));
}

#[test]
fn calls_have_the_form_of_the_model() {
    let reader = Reader::new(&[]);
    let llama = forced(CallFormat::Llama, true);
    let call = r#"{"name": "weather", "parameters": {"city": "Rom"}}"#;
    assert_eq!(reader.takes(&llama, call), (true, false));
    let mistral = forced(CallFormat::Mistral, true);
    for text in [format!("[TOOL_CALLS][{ULM}, {NOW}]"), format!("[TOOL_CALLS] [{NOW}]")] {
        assert_eq!(reader.takes(&mistral, &text), (true, false), "{text}");
    }
    let one = forced(CallFormat::Mistral, false);
    assert!(reader.takes(&one, &format!("[TOOL_CALLS][{ULM}]")).0);
    assert!(!reader.takes(&one, &format!("[TOOL_CALLS][{ULM}, {NOW}]")).0);
}

#[test]
fn marks_that_are_special_tokens_are_drawn_as_such() {
    let reader = Reader::new(&["[TOOL_CALLS]", "</think>"]);
    let mistral = AnswerGrammar { in_thought: true, ..forced(CallFormat::Mistral, true) };
    let text = format!("Hm.</think>\n\n[TOOL_CALLS][{NOW}]");
    assert_eq!(reader.takes(&mistral, &text), (true, false));
    // Spelled out, the mark is text.
    let id = reader.coder.id_of("[TOOL_CALLS]").expect("a token");
    let grammar = Grammar::Answer(forced(CallFormat::Mistral, true));
    let mut constraint = reader.grammars.constraint(&grammar).expect("valid");
    let mask = constraint.allowed().expect("in time");
    let allowed: Vec<u32> = reader.coder.ids().filter(|id| mask.allows(*id)).collect();
    assert_eq!(allowed, [id]);
}

#[test]
fn text_may_stand_before_calls_that_may_be_made() {
    let reader = Reader::new(&[]);
    let auto = |format| AnswerGrammar { other: Other::Text, ..forced(format, true) };
    let hermes_auto = auto(CallFormat::Hermes);
    for text in ["", "Hi <b>!\n", &hermes(ULM), &format!("I look.\n{}", hermes(NOW))] {
        assert!(reader.takes(&hermes_auto, text).0, "{text}");
    }
    for wrong in ["a <tool_call>x", "<tool_call>\n{\"name\": \"o", &format!("{}x", hermes(NOW))] {
        assert!(!reader.takes(&hermes_auto, wrong).0, "{wrong}");
    }
    let llama = auto(CallFormat::Llama);
    assert!(reader.takes(&llama, "It is {\"x\"").0);
    assert!(reader.takes(&llama, r#"{"name": "now", "parameters": {}}"#).0);
    assert!(!reader.takes(&llama, r#"{"nome"#).0);
    let mistral = auto(CallFormat::Mistral);
    assert!(reader.takes(&mistral, &format!("So [TOOL_CALLS][{NOW}]")).0);
    assert!(!reader.takes(&mistral, "So [TOOL_CALLS]{").0);
}

#[test]
fn an_answer_may_be_a_form_or_a_call_behind_a_thought() {
    let reader = Reader::new(&[]);
    let form = Other::Form(Box::new(Grammar::Regex("[0-9]+/x".into())));
    let calls = calls(CallFormat::Hermes, false);
    let both = AnswerGrammar { in_thought: true, calls, other: form.clone() };
    for text in ["Hm.\n</think>\n\n12/x", "</think>12/x", &format!("a</think>\n{}", hermes(NOW))] {
        assert_eq!(reader.takes(&both, text), (true, false), "{text}");
    }
    for wrong in ["12/x", "a</think>b"] {
        assert!(!reader.takes(&both, wrong).0, "{wrong}");
    }
    let alone = AnswerGrammar { in_thought: true, calls: None, other: form };
    assert!(reader.takes(&alone, "a</think>3/x").0);
}

#[test]
fn parameters_that_cannot_be_kept_are_refused() {
    let reader = Reader::new(&[]);
    let error = |parameters| {
        let functions = vec![CallableFunction { name: "a".into(), parameters }];
        let format = CallFormat::Hermes;
        let calls = Some(CallGrammar { format, functions, is_parallel: false });
        let answer = AnswerGrammar { in_thought: false, calls, other: Other::Nothing };
        let grammar = Grammar::Answer(answer);
        assert_eq!(grammar.key(), "tools");
        reader.grammars.constraint(&grammar).expect_err("refused").to_string()
    };
    let wrong = error(json!({"type": "no such"}));
    assert!(wrong.starts_with("the JSON schema of a tool is not valid: "), "{wrong}");
    let large = error(json!({"description": "a".repeat(300_000)}));
    assert!(large.contains("bytes of the tools' parameters is 300018"), "{large}");
}

#[test]
fn many_tools_are_taken() {
    let reader = Reader::new(&[]);
    let parameters = json!({"type": "object", "properties": {
        "a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}},
        "c": {"enum": ["x", "y"]}, "d": {"$ref": "#/$defs/e"}},
        "$defs": {"e": {"type": "boolean"}}, "required": ["a", "d"],
        "additionalProperties": false});
    let function = |index| CallableFunction {
        name: format!("function-{index}"),
        parameters: parameters.clone(),
    };
    let functions = (0..128).map(function).collect();
    let calls = Some(CallGrammar { format: CallFormat::Hermes, functions, is_parallel: true });
    let answer = AnswerGrammar { in_thought: false, calls, other: Other::Text };
    let last = r#"{"name": "function-127", "arguments": {"a": "é", "d": true}}"#;
    assert!(reader.takes(&answer, &hermes(last)).0);
}
