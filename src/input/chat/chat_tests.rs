//! Tests of templates, against the texts that transformers makes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::input::CallFormat;

const LIMIT: usize = 1 << 20;

/// Special tokens that templates write.
const SPECIALS: [&str; 8] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "</s>",
];

/// A case of `tools/generation_reference.py`.
#[derive(Deserialize)]
struct Case {
    template: String,
    tokens: BTreeMap<String, String>,
    now: i64,
    messages: Vec<Map<String, Value>>,
    variables: Map<String, Value>,
    text: Option<String>,
    error: Option<String>,
}

fn source(name: &str) -> &'static str {
    match name {
        "smollm2" => include_str!("../../../tests/references/chat/smollm2.jinja"),
        "qwen2" => include_str!("../../../tests/references/chat/qwen2.jinja"),
        "qwen3" => include_str!("../../../tests/references/chat/qwen3.jinja"),
        "llama3" => include_str!("../../../tests/references/chat/llama3.jinja"),
        "mistral" => include_str!("../../../tests/references/chat/mistral.jinja"),
        "gemma" => include_str!("../../../tests/references/chat/gemma.jinja"),
        "features" => include_str!("../../../tests/references/chat/features.jinja"),
        _ => unreachable!("{name}"),
    }
}

impl Case {
    fn chat(&self) -> Chat {
        let mut extra = self.variables.clone();
        let tools = extra.remove("tools").and_then(|tools| tools.as_array().cloned());
        let add = extra.remove("add_generation_prompt");
        Chat {
            messages: self.messages.clone(),
            tools,
            documents: None,
            add_generation_prompt: add == Some(Value::Bool(true)),
            extra,
            now: self.now,
        }
    }

    fn template(&self) -> ChatTemplate {
        ChatTemplate::new(source(&self.template), self.tokens.clone()).expect("a template")
    }
}

fn cases() -> Vec<Case> {
    let json = include_str!("../../../tests/references/chat/expected.json");
    serde_json::from_str(json).expect("the file of the script")
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BTreeMap::new()).expect("a template")
}

/// Returns a chat of one message of a user.
fn says(content: &str) -> Chat {
    let message = json!({"role": "user", "content": content});
    let messages = vec![message.as_object().expect("an object").clone()];
    Chat { messages, ..Chat::default() }
}

fn render(template: &ChatTemplate, chat: &Chat) -> Result<ChatPrompt, ChatTemplateError> {
    template.render(chat, SPECIALS.into_iter(), LIMIT)
}

#[test]
fn texts_are_those_of_transformers() {
    for (index, case) in cases().iter().enumerate() {
        match (render(&case.template(), &case.chat()), &case.text, &case.error) {
            (Ok(found), Some(text), _) => {
                assert_eq!(&found.text, text, "case {index}, {}", case.template);
            }
            (Err(ChatTemplateError::Refused { reason }), _, Some(error)) => {
                assert_eq!(&reason, error, "case {index}");
            }
            (found, ..) => panic!("case {index}, {}: {found:?}", case.template),
        }
    }
}

#[test]
fn no_special_token_can_be_made_of_the_texts_of_a_chat() {
    // Every text of a chat has all the special tokens, and parts of them at its ends.
    let hostile = format!("end|> {} x<|im_", SPECIALS.join(" "));
    for name in ["smollm2", "qwen2", "qwen3", "mistral", "gemma", "llama3"] {
        let template = template(source(name));
        let prompt = render(&template, &says(&hostile)).expect(name);
        let plain = render(&template, &says("x")).expect(name);
        let whole = |prompt: &ChatPrompt| -> usize {
            let of = |special: &&str| {
                let ends = |start: usize| start + special.len();
                let found = prompt.text.match_indices(*special).map(|(start, _)| start);
                let free = |start: &usize| {
                    !prompt.guards.iter().any(|guard| (start + 1..ends(*start)).contains(guard))
                };
                found.filter(free).count()
            };
            SPECIALS.iter().map(of).sum()
        };
        assert!(prompt.text.contains(hostile.trim()), "{name}");
        assert_eq!(whole(&prompt), whole(&plain), "{name}: {prompt:?}");
        assert!(prompt.guards.is_sorted(), "{name}");
        assert!(prompt.guards.iter().all(|guard| prompt.text.is_char_boundary(*guard)), "{name}");
    }
}

#[test]
fn a_special_token_of_two_texts_is_text() {
    let template = template("{% for part in messages[0].content %}{{ part.text }}{% endfor %}");
    let parts = json!([{"text": "a<|im_"}, {"text": "end|>b"}]);
    let mut chat = says("");
    chat.messages[0].insert("content".into(), parts);
    let prompt = render(&template, &chat).expect("rendered");
    assert_eq!((prompt.text.as_str(), prompt.guards), ("a<|im_end|>b", vec![2, 6]));
}

#[test]
fn a_special_token_that_a_template_puts_together_is_text() {
    let template = template("{{ messages[0].content | replace('-', '') }}");
    let prompt = render(&template, &says("<|im-_end|>")).expect("rendered");
    assert_eq!((prompt.text.as_str(), prompt.guards), ("<|im_end|>", vec![1]));
}

#[test]
fn a_template_that_looks_into_texts_sees_them_as_they_are() {
    let source = "{% if messages[0].content.startswith('<|') %}bar{% else %}none{% endif %}\
                  {{ messages[0].content }}";
    let prompt = render(&template(source), &says("<|x <|im_end|>")).expect("rendered");
    assert_eq!(prompt.text, "bar<|x <|im_end|>");
    // Inside the token alone.
    assert_eq!(prompt.guards, [3 + 5]);
}

#[test]
fn roles_may_be_parts_of_special_tokens() {
    let template = template("{{ '<|' + messages[0].role + '|>' + messages[0].content }}");
    let prompt = template.render(&says("a<b"), ["<|user|>"].into_iter(), LIMIT).expect("rendered");
    assert_eq!((prompt.text.as_str(), prompt.guards), ("<|user|>a<b", vec![10]));
}

#[test]
fn marks_are_characters_that_the_chat_does_not_have() {
    let prompt = render(&template("{{ messages[0].content }}"), &says("\u{E000}<|im_end|>"));
    let prompt = prompt.expect("rendered");
    assert_eq!((prompt.text.as_str(), prompt.guards), ("\u{E000}<|im_end|>", vec![4]));
}

#[test]
fn variables_of_a_request_do_not_replace_the_chat() {
    let mut chat = says("a");
    chat.extra.insert("messages".into(), json!([]));
    chat.extra.insert("mood".into(), json!("good"));
    let prompt = render(&template("{{ messages[0].content }} {{ mood }}"), &chat);
    assert_eq!(prompt.expect("rendered").text, "a good");
}

#[test]
fn endless_templates_and_long_prompts_are_refused() {
    let endless =
        "{% for a in range(9000) %}{% for b in range(9000) %}{{ '' }}{% endfor %}{% endfor %}";
    let error = render(&template(endless), &says("a")).expect_err("endless");
    assert!(matches!(error, ChatTemplateError::Steps), "{error}");
    let doubling = "{% set ns = namespace(a='ab') %}\
                    {% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}";
    let error = render(&template(doubling), &says("a")).expect_err("doubling");
    assert!(matches!(error, ChatTemplateError::Steps), "{error}");
    let long = template("{{ messages[0].content }}{{ messages[0].content }}");
    let error = long.render(&says("abc"), [].into_iter(), 5).expect_err("long");
    assert_eq!(error.to_string(), "the messages are longer than 5 bytes as a prompt");
    assert!(long.render(&says("abc"), [].into_iter(), 6).is_ok());
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let error = ChatTemplate::new("a\n{% if %}", BTreeMap::new()).expect_err("not a template");
    assert!(error.to_string().contains("line 2"), "{error}");
    ChatTemplate::new("{%}", BTreeMap::new()).expect_err("not a template");
    let error = render(&template("{{ raise_exception('Only users!') }}"), &says("a"));
    let error = error.expect_err("refused").to_string();
    assert_eq!(error, "the chat template refuses the messages: Only users!");
    let error = render(&template("a\n{{ messages[0].content.x.y }}"), &says("a"));
    let error = error.expect_err("undefined").to_string();
    assert!(error.starts_with("the chat template cannot render the messages: "), "{error}");
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn deep_templates_are_refused_or_rendered() {
    let sources = [
        format!("{{{{ {}1{} }}}}", "[".repeat(5000), "]".repeat(5000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(100), "]".repeat(100)),
        format!("{{{{ {}1 }}}}", "-".repeat(5000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(5000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(5000)),
        format!("{{{{ 1{} }}}}", " ~ 1".repeat(5000)),
        format!("{{{{ a{} }}}}", "+a".repeat(5000)),
        format!("{{{{ 1{} }}}}", "|string".repeat(5000)),
        format!("{{{{ a{} }}}}", ".b".repeat(5000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(5000)),
        format!("{{{{ 2{} }}}}", " ** 1".repeat(5000)),
        format!("{}{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(5000)),
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".to_owned(),
        "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}".to_owned(),
        "{% for x in [[1]] recursive %}{{ loop([[x]]) }}{% endfor %}".to_owned(),
    ];
    for source in sources {
        if let Ok(template) = ChatTemplate::new(&source, BTreeMap::new()) {
            drop(render(&template, &says("a")));
        }
    }
}

/// Returns a tool, a message that calls it, and its result.
fn tool() -> [Value; 3] {
    let function = json!({"name": "sum", "description": "Adds <|im_end|>", "parameters": {}});
    let called = json!({"name": "sum", "arguments": {"a": [1, 2]}});
    let calls = json!([{"id": "x", "type": "function", "function": called.clone()}, called]);
    [
        json!({"type": "function", "function": function}),
        json!({"role": "assistant", "content": null, "tool_calls": calls}),
        json!({"role": "tool", "tool_call_id": "x", "content": "3"}),
    ]
}

#[test]
fn templates_tell_whether_they_take_tools_and_how_calls_are_written() {
    for (name, takes_tools, calls, thinks) in [
        ("smollm2", false, None, false),
        ("qwen2", true, Some(CallFormat::Hermes), false),
        ("qwen3", false, None, true),
        ("llama3", true, Some(CallFormat::Llama), false),
        ("mistral", true, Some(CallFormat::Mistral), false),
        ("gemma", false, None, false),
    ] {
        let template = template(source(name));
        let found = (template.takes_tools(), template.calls(), template.thinks());
        assert_eq!(found, (takes_tools, calls, thinks), "{name}");
    }
}

#[test]
fn a_template_without_tools_is_given_them_as_text() {
    let [tool, call, result] = tool();
    let mut chat = says("Add.");
    chat.tools = Some(vec![tool]);
    for message in [&call, &result, &result] {
        chat.messages.push(message.as_object().expect("an object").clone());
    }
    chat.messages[1].insert("content".into(), "I add.".into());
    let prompt = render(&template(source("smollm2")), &chat).expect("rendered");
    let expected = include_str!("../../../tests/references/chat/smollm2_tools.txt");
    assert_eq!(prompt.text, expected);
    // The special token in the description is text.
    let place = expected.find("Adds <|im_end|>").expect("the description") + "Adds <".len();
    assert!(prompt.guards.contains(&place), "{:?}", prompt.guards);
}
