//! Tools and thoughts in chats, by a decoder with random weights.

use serde_json::{Value, json};

use crate::chats::{Chat, events};

/// A template with tools, in the form of Hermes.
pub(crate) const TOOLS: &str = "{% for tool in tools or [] %}{{ tool.function.name }},{% endfor %}\
                     {% for message in messages %}<|im_start|>{{ message.role }}\n\
                     {{ message.content }}{% for call in message.tool_calls %}<tool_call>\
                     {{ call.function.arguments.city }}</tool_call>{% endfor %}<|im_end|>\n\
                     {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A template without tools, of a model that thinks.
pub(crate) const THINKS: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
                      {% if message.reasoning_content %}<think>{{ message.reasoning_content }}\
                      </think>{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}\
                      <|im_start|>assistant\n{% if opens %}<think>\n{% endif %}";

fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Ulm", "Rom"]}},
                      "required": ["city"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "Tells the weather.",
                                          "parameters": city}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// Returns the message of an answer, and the reason of its end.
fn message(answer: &Value) -> (&Value, &str) {
    let choice = &answer["choices"][0];
    (&choice["message"], choice["finish_reason"].as_str().expect("a reason"))
}

/// Checks a call, and returns its name and arguments.
fn checked(call: &Value) -> (String, Value) {
    assert_eq!(call["type"], "function");
    let arguments = call["function"]["arguments"].as_str().expect("a text");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    let name = call["function"]["name"].as_str().expect("a name");
    match name {
        "weather" => assert!(["Ulm", "Rom"].map(Value::from).contains(&arguments["city"])),
        _ => assert_eq!((name, &arguments), ("now", &json!({}))),
    }
    (name.to_owned(), arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_must_be_called_is_called_whole_and_in_pieces() {
    let chat = Chat::with(TOOLS);
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for (choice, is_named) in [(json!("required"), false), (named, true)] {
        let more = json!({"tools": tools(), "tool_choice": choice, "max_tokens": 120,
                          "parallel_tool_calls": false});
        let answer = chat.chat("a", more.clone()).await.expect(200);
        let (whole, reason) = message(&answer);
        assert_eq!((reason, &whole["content"]), ("tool_calls", &Value::Null), "{whole}");
        let calls = whole["tool_calls"].as_array().expect("calls");
        assert_eq!(calls.len(), 1);
        assert!(calls[0]["id"].as_str().expect("an id").starts_with("call_"));
        let (name, arguments) = checked(&calls[0]);
        assert!(!is_named || name == "weather");
        let mut streamed = more;
        streamed["stream"] = json!(true);
        let (mut call, mut num_pieces) = (json!(null), 0);
        let events = events(&chat.chat("a", streamed).await);
        for event in &events {
            for piece in event["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten()
            {
                num_pieces += 1;
                assert_eq!(piece["index"], 0);
                match call.is_null() {
                    true => call = piece.clone(),
                    false => {
                        let text = call["function"]["arguments"].as_str().expect("a text");
                        let more = piece["function"]["arguments"].as_str().expect("a text");
                        call["function"]["arguments"] = format!("{text}{more}").into();
                    }
                }
            }
        }
        assert!(num_pieces > 2, "arguments come in pieces");
        assert_eq!(checked(&call), (name, arguments));
        assert_eq!(events[events.len() - 1]["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_tools_are_called_in_their_order() {
    let chat = Chat::with(TOOLS);
    let mut several = 0;
    for seed in 0..6 {
        let more = json!({"tools": tools(), "tool_choice": "required", "max_tokens": 250,
                          "temperature": 1.5, "seed": seed});
        let answer = chat.chat("a", more).await.expect(200);
        let (message, reason) = message(&answer);
        let calls = message["tool_calls"].as_array().expect("calls");
        let whole = if reason == "length" { calls.len() - 1 } else { calls.len() };
        assert!(["tool_calls", "length"].contains(&reason));
        calls[..whole].iter().for_each(|call| drop(checked(call)));
        several += usize::from(whole > 1);
    }
    assert!(several > 0, "a seed calls several");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_results_are_given_to_the_template() {
    let chat = Chat::with(TOOLS);
    let call = |arguments: Value| {
        json!([{"id": "x", "type": "function",
                "function": {"name": "weather", "arguments": arguments}}])
    };
    let ask = |arguments: Value| {
        let messages = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": call(arguments)},
            {"role": "tool", "tool_call_id": "x", "content": "12"},
        ]);
        json!({"messages": messages, "tools": tools(), "tool_choice": "auto", "max_tokens": 1})
    };
    let prompt = |reply: &Value| reply["usage"]["prompt_tokens"].as_u64().expect("a number");
    let ulm = chat.chat("", ask(json!("{\"city\": \"Ulm\"}"))).await.expect(200);
    let messages = ["user\na", "assistant\n<tool_call>Ulm</tool_call>", "tool\n12"];
    let length: usize = messages.iter().map(|text| text.len() + 3).sum();
    let expected = "weather,now,".len() + length + "assistant\n".len() + 1;
    assert_eq!(prompt(&ulm), expected as u64);
    let object = chat.chat("", ask(json!({"city": "Ulm"}))).await.expect(200);
    assert_eq!(prompt(&object), prompt(&ulm));
    // Tools that may not be called are not shown.
    let mut none = ask(json!({"city": "Ulm"}));
    none["tool_choice"] = json!("none");
    let none = chat.chat("", none).await.expect(200);
    assert_eq!(prompt(&ulm) - prompt(&none), "weather,now,".len() as u64);
    let wrong = chat.chat("", ask(json!("no JSON"))).await.expect(400);
    let reason = wrong["error"]["message"].to_string();
    assert!(reason.contains("messages[1].tool_calls[0].function.arguments"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_has_its_form_or_calls() {
    let chat = Chat::with(TOOLS);
    let mut num_calls = 0;
    for seed in 0..8 {
        let more = json!({"tools": tools(), "guided_choice": ["no"], "max_tokens": 120,
                          "temperature": 2, "seed": seed, "parallel_tool_calls": false});
        let answer = chat.chat("a", more).await.expect(200);
        match message(&answer) {
            (message, "stop") => assert_eq!(message["content"], "no"),
            (message, "tool_calls") => {
                num_calls += 1;
                let name = &message["tool_calls"][0]["function"]["name"];
                assert!(["weather", "now"].map(Value::from).contains(name), "{message}");
            }
            // Arguments of functions that are not strict are any object.
            (message, reason) => assert_eq!(reason, "length", "{message}"),
        }
    }
    assert!(num_calls < 8, "a seed says no");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_tools_calls_what_it_must() {
    let chat = Chat::with(THINKS);
    let one = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let refused = chat.chat("a", json!({"tools": one})).await.expect(400);
    let reason = refused["error"]["message"].to_string();
    assert!(reason.contains("`tools`") && reason.contains("required"), "{reason}");
    let long = chat.chat("a", json!({"tools": one, "tool_choice": "required"})).await.expect(400);
    assert_eq!(long["error"]["code"], "context_length_exceeded", "the tools are in the prompt");
    let none = chat.chat("a", json!({"tools": one, "tool_choice": "none"})).await.expect(200);
    assert_eq!(message(&none).1, "length");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_that_a_request_cannot_have_are_refused_by_their_key() {
    let chat = Chat::with(TOOLS);
    let tool = |function: Value| json!([{"type": "function", "function": function}]);
    let schema = json!({"type": "object", "properties": {"a": {"type": "no such"}}});
    let wrong = json!({"name": "f", "parameters": schema, "strict": true});
    let large = json!({"name": "f", "description": "a".repeat(300_000)});
    let two = json!([tool(json!({"name": "f"}))[0], tool(json!({"name": "f"}))[0]]);
    let form = json!({"tools": tools(), "tool_choice": "required", "guided_choice": ["a"]});
    let other = json!({"type": "function", "function": {"name": "other"}});
    for (more, word) in [
        (json!({"tools": []}), "`tools`"),
        (json!({"tools": vec![tools()[1].clone(); 129]}), "of 129 tools"),
        (json!({"tools": tool(json!({"name": "a b"}))}), "tools[0].function.name"),
        (json!({"tools": two}), "tools[1].function.name"),
        (json!({"tools": tool(json!({"name": "f", "parameters": []}))}), "[0].function.parameters"),
        (json!({"tools": tool(json!({"name": "f", "more": 1}))}), "unknown field `more`"),
        (
            json!({"tools": [{"type": "custom"}]}),
            "`tools[0].type` is `custom`, but must be `function`",
        ),
        (json!({"tools": tool(large)}), "bytes"),
        (json!({"tools": tool(wrong)}), "JSON schema of a tool"),
        (json!({"tool_choice": "auto"}), "`tool_choice`"),
        (json!({"parallel_tool_calls": true}), "`parallel_tool_calls`"),
        (json!({"tools": tools(), "tool_choice": "all"}), "`tool_choice`"),
        (json!({"tools": tools(), "tool_choice": other}), "`tool_choice`"),
        (form, "`guided_choice`"),
        (json!({"messages": [{"role": "user", "tool_calls": []}]}), "messages[0].tool_calls"),
        (json!({"messages": [{"role": "tool", "tool_call_id": 1}]}), "messages[0].tool_call_id"),
        (json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "[0].function"),
    ] {
        let reply = chat.chat("a", more.clone()).await;
        assert_eq!(reply.status, 400, "{more}: {}", reply.text);
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains(word), "{more}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thought_is_apart_from_the_text() {
    let chat = Chat::with(THINKS);
    let text = "<think>\nHm.\n</think>\n\nHi";
    let more = json!({"guided_choice": [text], "max_tokens": 60});
    let answer = chat.chat("a", more.clone()).await.expect(200);
    let (whole, reason) = message(&answer);
    assert_eq!((&whole["reasoning_content"], &whole["content"]), (&json!("Hm."), &json!("Hi")));
    assert_eq!(reason, "stop");
    let details = &answer["usage"]["completion_tokens_details"];
    // The tokens of the marks and of what stands between them, but for the first seven bytes.
    let num_thought = "<think>\nHm.\n</think>".len() - "<think".len();
    assert_eq!(details["reasoning_tokens"], num_thought);
    let mut streamed = more;
    streamed["stream"] = json!(true);
    let events = events(&chat.chat("a", streamed).await);
    for (key, expected) in [("reasoning_content", "Hm."), ("content", "Hi")] {
        let delta = |event: &Value| {
            event["choices"][0]["delta"][key].as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(events.iter().map(delta).collect::<String>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_begins_in_the_thought_that_the_prompt_opens() {
    let chat = Chat::with(THINKS);
    let more = |opens: bool| json!({"chat_template_kwargs": {"opens": opens}});
    let answer = chat.chat("a", more(true)).await.expect(200);
    let (thought, _) = message(&answer);
    assert_eq!(thought["content"], "");
    assert!(thought["reasoning_content"].is_string(), "{thought}");
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 12);
    let answer = chat.chat("a", more(false)).await.expect(200);
    assert!(message(&answer).0.get("reasoning_content").is_none());
    // A form begins behind the thought.
    let form = json!({"chat_template_kwargs": {"opens": true}, "guided_choice": ["b"]});
    let answer = chat.chat("a", form).await.expect(200);
    assert_eq!(message(&answer).1, "length", "the thought goes on");
    let thought = |text: Option<&str>| {
        json!({"messages": [{"role": "user", "content": "a"},
                            {"role": "assistant", "content": "b", "reasoning_content": text}]})
    };
    let mut lengths = Vec::new();
    for text in [Some("Hm."), None] {
        let answer = chat.chat("", thought(text)).await.expect(200);
        lengths.push(answer["usage"]["prompt_tokens"].as_u64().expect("a number"));
    }
    assert_eq!(lengths[0] - lengths[1], "<think>Hm.</think>".len() as u64);
}
