//! Tests of the parts of answers.

use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn spec(calls: Option<CallFormat>) -> PartsSpec {
    let functions = Arc::from(["sum".to_owned(), "weather".to_owned()]);
    PartsSpec { calls, functions, thinks: false, in_thought: false }
}

fn thinking(calls: Option<CallFormat>) -> PartsSpec {
    PartsSpec { thinks: true, ..spec(calls) }
}

/// An answer as a client reads it.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct Answer {
    thought: String,
    text: String,
    calls: Vec<(String, String)>,
    is_call: bool,
}

impl Answer {
    fn add(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Thought(text) => self.thought.push_str(&text),
                Part::Text(text) => self.text.push_str(&text),
                Part::Call { index, name } => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push((name, String::new()));
                }
                Part::Arguments { index, text } => {
                    assert_eq!(index + 1, self.calls.len(), "they are of the last call");
                    self.calls[index].1.push_str(&text);
                }
            }
        }
    }
}

/// Reads an answer that comes in `texts`.
fn read(spec: &PartsSpec, texts: &[&str]) -> Answer {
    let mut parts = AnswerParts::new(spec.clone());
    let mut answer = Answer::default();
    for text in texts {
        answer.add(parts.push(text));
    }
    answer.add(parts.finish());
    Answer { is_call: parts.is_call(), ..answer }
}

const HERMES: Option<CallFormat> = Some(CallFormat::Hermes);
const LLAMA: Option<CallFormat> = Some(CallFormat::Llama);
const MISTRAL: Option<CallFormat> = Some(CallFormat::Mistral);

/// An answer as a model writes it, and as it is read.
#[derive(Deserialize)]
struct Case {
    form: Option<String>,
    thinks: bool,
    in_thought: bool,
    answer: String,
    #[serde(flatten)]
    read: Answer,
}

impl Case {
    fn spec(&self) -> PartsSpec {
        let calls = match self.form.as_deref() {
            Some("hermes") => HERMES,
            Some("llama") => LLAMA,
            Some("mistral") => MISTRAL,
            form => form.map(|form| panic!("{form}")),
        };
        PartsSpec { thinks: self.thinks, in_thought: self.in_thought, ..spec(calls) }
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/references/chat/answers.json"))
        .expect("cases")
}

#[test]
fn an_answer_has_a_thought_a_text_and_calls() {
    for case in cases() {
        assert_eq!(read(&case.spec(), &[&case.answer]), case.read, "{}", case.answer);
    }
}

#[test]
fn an_answer_is_the_same_character_by_character() {
    for case in cases() {
        let characters: Vec<String> = case.answer.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(read(&case.spec(), &characters), case.read, "{}", case.answer);
    }
}

#[test]
fn a_call_is_told_as_soon_as_its_name_is_known_and_arguments_come_in_pieces() {
    let mut parts = AnswerParts::new(spec(HERMES));
    assert_eq!(parts.push("So. <tool_call>{\"name\": \"su"), [Part::Text("So.".into())]);
    assert_eq!(parts.push("m\","), [Part::Call { index: 0, name: "sum".into() }]);
    assert!(!parts.is_call());
    let piece = |text: &str| vec![Part::Arguments { index: 0, text: text.into() }];
    assert_eq!(parts.push(" \"arguments\": {\"a\""), piece("{\"a\""));
    assert_eq!(parts.push(": 1}"), piece(": 1}"));
    assert!(!parts.is_call());
    assert_eq!(parts.push("}</tool_call>"), []);
    assert!(parts.is_call());
}

#[test]
fn a_call_without_its_marks_is_one_of_a_function_that_there_is() {
    let call = "{\"name\": \"sum\", \"arguments\": {\"a\": 1}}";
    let sum = |arguments: &str| vec![("sum".to_owned(), arguments.to_owned())];
    let answer = read(&spec(HERMES), &[" \n", call]);
    assert_eq!((answer.text.as_str(), answer.is_call), ("", true));
    assert_eq!(answer.calls, sum("{\"a\": 1}"));
    let thought = read(&thinking(HERMES), &["<think>So.</think>\n", call, "\n"]);
    assert_eq!((thought.thought.as_str(), thought.calls), ("So.", sum("{\"a\": 1}")));
    for text in [
        call.replace("sum", "other"),
        "{\"sum\": 1}".to_owned(),
        "{}".to_owned(),
        format!("So: {call}"),
    ] {
        let answer = read(&spec(HERMES), &[&text]);
        assert_eq!((answer.text, answer.calls.len(), answer.is_call), (text, 0, false));
    }
    let mistral = read(&spec(MISTRAL), &[call]);
    assert_eq!((mistral.text.as_str(), mistral.is_call), (call, false));
}

#[test]
fn text_that_is_certain_is_not_held_back() {
    let mut parts = AnswerParts::new(thinking(HERMES));
    assert_eq!(parts.push(" <"), []);
    assert_eq!(parts.push("b> c"), [Part::Text(" <b> c".into())]);
    assert_eq!(parts.push(" d"), [Part::Text(" d".into())]);
    let mut parts = AnswerParts::new(thinking(HERMES));
    assert_eq!(parts.push("<think>"), []);
    assert!(parts.is_in_thought());
    assert_eq!(parts.push("a b "), [Part::Thought("a b".into())]);
    assert_eq!(parts.push("c"), [Part::Thought(" c".into())]);
}

#[test]
fn brackets_behind_marks_that_call_nothing_are_text() {
    for text in ["<tool_call>]]", "<tool_call>] ]</tool_call>", "<tool_call>[]]</tool_call>]"] {
        let answer = read(&spec(HERMES), &[text]);
        assert_eq!((answer.text.as_str(), answer.is_call), (text, false));
    }
}

#[test]
fn the_form_of_calls_is_that_of_the_template() {
    let of = |name: &str| CallFormat::of_template(name);
    for (source, format) in [
        (include_str!("../../../tests/references/chat/qwen2.jinja"), HERMES),
        (include_str!("../../../tests/references/chat/llama3.jinja"), LLAMA),
        (include_str!("../../../tests/references/chat/mistral.jinja"), MISTRAL),
        (include_str!("../../../tests/references/chat/gemma.jinja"), None),
        (include_str!("../../../tests/references/chat/smollm2.jinja"), None),
        ("<tool_call>\n<function={{ name }}>", None),
        ("[TOOL_CALLS]{{ name }}[ARGS]", None),
    ] {
        assert_eq!(of(source), format, "{source}");
    }
}

proptest! {
    #[test]
    fn any_text_gives_the_same_whole_and_in_pieces(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<think>", "</think>", "{", "}", "[",
                "]", ",", ":", "\"name\"", "\"sum\"", "\"arguments\"", "\"parameters\"", " ", "\n",
                "\\", "\"", "1", "é", "<|python_tag|>", "<tool", "{\"name\": \"sum\", ",
            ]),
            0..24,
        ),
        format in prop::sample::select(vec![None, HERMES, LLAMA, MISTRAL]),
        thinks in any::<bool>(),
        in_thought in any::<bool>(),
    ) {
        let spec = PartsSpec { thinks, in_thought: thinks && in_thought, ..spec(format) };
        let whole = pieces.concat();
        let answer = read(&spec, &[&whole]);
        prop_assert_eq!(&read(&spec, &pieces), &answer);
        // Without calls and thoughts nothing is left out.
        if answer.calls.is_empty() && !thinks {
            prop_assert_eq!(answer.text, whole);
        }
    }
}
