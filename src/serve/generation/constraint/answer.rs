//! Grammars of answers that call functions, or begin in a thought.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::grammar::{AnswerGrammar, CallGrammar, CallableFunction, GrammarError, Other};
use crate::input::{CallFormat, THOUGHT_END};

/// Most calls of an answer.
const MAX_CALLS: usize = 32;

/// Most bytes of the parameters of all functions.
const MAX_BYTES: usize = 256 * 1024;

/// Special tokens of a vocabulary by the marks that they are.
#[derive(Debug, Default)]
pub(super) struct Marks(pub(super) Vec<(&'static str, u32)>);

impl Marks {
    /// Returns the terminal of `mark`: a special token, or a text.
    fn terminal(&self, mark: &'static str) -> String {
        match self.special(mark) {
            Some(id) => format!("<[{id}]>"),
            None => format!("\"{mark}\""),
        }
    }

    fn special(&self, mark: &str) -> Option<u32> {
        self.0.iter().find(|(known, _)| *known == mark).map(|(_, id)| *id)
    }

    /// Returns a rule `name` of any text up to `mark`.
    fn until(&self, name: &str, mark: &'static str) -> String {
        match self.special(mark) {
            Some(id) => format!("{name}: TEXT <[{id}]>\n"),
            None => format!("{name}[lazy]: TEXT \"{mark}\"\n"),
        }
    }
}

/// Returns `answer` in the library's form. `form` is that of its other form, if it has one.
///
/// # Errors
///
/// Fails when a part is too large.
pub(super) fn compiled(
    answer: &AnswerGrammar,
    form: Option<GrammarWithLexer>,
    marks: &Marks,
) -> Result<TopLevelGrammar, GrammarError> {
    let mut parts = Vec::new();
    let mut rules = "TEXT: /(\\n|.)*/\n".to_owned();
    let thought = if answer.in_thought {
        rules.push_str(&marks.until("thought", THOUGHT_END));
        "thought (\"\\n\\n\" | \"\\n\")? "
    } else {
        ""
    };
    let mut bodies = Vec::new();
    if let Some(calls) = &answer.calls {
        add_rules(calls, marks, &mut rules, &mut parts)?;
        bodies.push("calls");
    }
    match &answer.other {
        Other::Nothing => {}
        Other::Text => {
            bodies.push("text");
            rules.push_str(&text(answer, marks));
        }
        Other::Form(_) => {
            bodies.push("@form");
            parts.extend(form.map(|form| named("form".to_owned(), form)));
        }
    }
    let start = format!("start: {thought}({})\n", bodies.join(" | "));
    let mut grammars = vec![GrammarWithLexer::from_lark(start + &rules)];
    grammars.extend(parts);
    Ok(TopLevelGrammar { grammars, max_tokens: None })
}

/// Returns the rules of text, behind which calls may follow.
fn text(answer: &AnswerGrammar, marks: &Marks) -> String {
    match answer.calls.as_ref().map(|calls| calls.format) {
        None => "text: TEXT\n".to_owned(),
        // A text that begins like a call is one.
        Some(CallFormat::Llama) => "text: /([^{\\s<](\\n|.)*)?/\n".to_owned(),
        Some(format @ (CallFormat::Hermes | CallFormat::Mistral)) => {
            let until = marks.until("before", format.begin());
            format!("text: TEXT | before behind\n{until}")
        }
    }
}

/// Adds the rules `calls`, and `behind` for what follows the first mark of calls.
fn add_rules(
    calls: &CallGrammar,
    marks: &Marks,
    rules: &mut String,
    parts: &mut Vec<GrammarWithLexer>,
) -> Result<(), GrammarError> {
    let found = calls.functions.iter().map(|own| own.parameters.to_string().len()).sum();
    if found > MAX_BYTES {
        let what = "the number of bytes of the tools' parameters";
        return Err(GrammarError::Large { what, found, limit: MAX_BYTES });
    }
    let mut names = Vec::new();
    for (index, CallableFunction { name, parameters }) in calls.functions.iter().enumerate() {
        let key = calls.format.arguments();
        rules.push_str(&format!(
            "f{index}: \"{{\\\"name\\\": \\\"{name}\\\", \\\"{key}\\\": \" @p{index} \"}}\"\n"
        ));
        let schema = GrammarWithLexer::from_json_schema(spaced(&of_object(parameters)));
        parts.push(named(format!("p{index}"), schema));
        names.push(format!("f{index}"));
    }
    rules.push_str(&format!("call: {}\n", names.join(" | ")));
    let begin = calls.format.begin();
    let more = if calls.is_parallel { MAX_CALLS - 1 } else { 0 };
    let repeated = |rule: &str| match more {
        0 => String::new(),
        _ => format!(" ({rule}){{0,{more}}}"),
    };
    let rule = match calls.format {
        CallFormat::Hermes => {
            let (begin, end) = (marks.terminal(begin), marks.terminal(calls.format.end()));
            let one = format!("\"\\n\" call \"\\n\" {end}");
            let more = repeated(&format!("\"\\n\" {begin} {one}"));
            format!("calls: {begin} behind\nbehind: {one}{more}\n")
        }
        CallFormat::Mistral => {
            let begin = marks.terminal(begin);
            let more = repeated("\", \" call");
            format!("calls: {begin} behind\nbehind: \" \"? \"[\" call{more} \"]\"\n")
        }
        // Llama 3 calls one function at a time.
        CallFormat::Llama => "calls: call\n".to_owned(),
    };
    rules.push_str(&rule);
    Ok(())
}

fn named(name: String, grammar: GrammarWithLexer) -> GrammarWithLexer {
    GrammarWithLexer { name: Some(name), ..grammar }
}

/// Returns `schema` with white space as models write it: one after a comma or a colon. Without a
/// bound, an answer could be white space for ever.
pub(super) fn spaced(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        other => [("allOf".to_owned(), json!([other]))].into_iter().collect(),
    };
    let style =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.insert("x-guidance".into(), style);
    Value::Object(schema)
}

/// Returns the schema of arguments, which are an object whether `schema` says so or not.
fn of_object(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let says = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
    if let Value::Object(fields) = &mut schema
        && !says.iter().any(|key| fields.contains_key(*key))
    {
        fields.insert("type".to_owned(), json!("object"));
    }
    schema
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
