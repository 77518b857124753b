//! The Responses API, by a decoder with random weights.

use serde_json::{Value, json};

use crate::{chats::Chat, support::http::Reply, tools::THINKS, tools::TOOLS};

const ROUTE: &str = "/v1/responses";

/// Returns a request with further keys.
fn request(more: Value) -> Value {
    let mut request = json!({"model": "language", "input": "How are you?", "temperature": 0,
                             "max_output_tokens": 12});
    request.as_object_mut().expect("an object").extend(more.as_object().expect("keys").clone());
    request
}

/// Returns the values of the events of a stream, whose names and numbers are checked.
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let mut found = Vec::new();
    for (number, event) in reply.text.split_terminator("\n\n").enumerate() {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data = data.strip_prefix("data: ").expect("data");
        let value: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), value["type"].as_str());
        assert_eq!(value["sequence_number"], number);
        found.push(value);
    }
    found
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    kinds.dedup();
    kinds
}

fn weather() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Ulm", "Rom"]}},
                      "required": ["city"], "additionalProperties": false});
    json!([{"type": "function", "name": "weather", "parameters": city}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_has_the_text_of_the_chat_whole_and_as_events() {
    let chat = Chat::with(TOOLS);
    let message = chat.chat("How are you?", json!({})).await.expect(200);
    let text = &message["choices"][0]["message"]["content"];
    let whole = chat.ask(ROUTE, request(json!({"metadata": {"a": "b"}}))).await.expect(200);
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    let item = &whole["output"][0];
    assert_eq!((&item["type"], &item["content"][0]["text"]), (&json!("message"), text));
    assert_eq!(item["content"][0]["type"], "output_text");
    assert_eq!((&whole["store"], &whole["metadata"]), (&json!(false), &json!({"a": "b"})));
    assert_eq!(whole["usage"]["input_tokens"], message["usage"]["prompt_tokens"]);
    assert_eq!(whole["usage"]["output_tokens"], 12);
    assert_eq!(whole["tessera"]["plan"], "a[0..2]");
    let events = events(&chat.ask(ROUTE, request(json!({"stream": true}))).await);
    assert_eq!(
        kinds(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(&json!(deltas), text);
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["output"][0]["content"], item["content"]);
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_calls_what_it_must() {
    let chat = Chat::with(TOOLS);
    let choice = json!({"type": "function", "name": "weather"});
    let more = json!({"tools": weather(), "tool_choice": choice, "max_output_tokens": 120,
                      "parallel_tool_calls": false});
    let whole = chat.ask(ROUTE, request(more.clone())).await.expect(200);
    assert_eq!((&whole["status"], &whole["tool_choice"]), (&json!("completed"), &choice));
    let item = &whole["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("weather")));
    let arguments = item["arguments"].as_str().expect("a text");
    let city: Value = serde_json::from_str(arguments).expect("JSON");
    assert!(["Ulm", "Rom"].map(Value::from).contains(&city["city"]), "{city}");
    let mut streamed = request(more);
    streamed["stream"] = json!(true);
    let events = events(&chat.ask(ROUTE, streamed).await);
    assert_eq!(
        kinds(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas, arguments);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_the_messages_of_a_chat() {
    let chat = Chat::with(TOOLS);
    let part = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let input = json!([
        {"role": "user", "content": part("input_text", "a")},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1",
         "content": part("output_text", "I look.")},
        {"type": "function_call", "call_id": "x", "name": "weather", "id": "fc_1",
         "arguments": "{\"city\": \"Ulm\"}"},
        {"type": "function_call_output", "call_id": "x", "output": "12"},
    ]);
    let more = json!({"input": input, "instructions": "Be brief."});
    let whole = chat.ask(ROUTE, request(more)).await.expect(200);
    let calls = json!([{"id": "x", "function": {"name": "weather",
                                                "arguments": {"city": "Ulm"}}}]);
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "x", "content": "12"},
    ]);
    let answer = chat.chat("", json!({"messages": messages})).await.expect(200);
    assert_eq!(whole["usage"]["input_tokens"], answer["usage"]["prompt_tokens"]);
    let text = &answer["choices"][0]["message"]["content"];
    assert_eq!(&whole["output"][0]["content"][0]["text"], text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thought_is_an_item_of_its_own() {
    let chat = Chat::with(THINKS);
    let more = json!({"guided_choice": ["<think>\nHm.\n</think>\n\nHi"], "max_output_tokens": 60});
    let whole = chat.ask(ROUTE, request(more.clone())).await.expect(200);
    let [thought, message] = whole["output"].as_array().expect("items").as_slice() else {
        panic!("{whole}")
    };
    assert_eq!((&thought["type"], &message["type"]), (&json!("reasoning"), &json!("message")));
    assert_eq!(thought["content"], json!([{"type": "reasoning_text", "text": "Hm."}]));
    assert_eq!(message["content"][0]["text"], "Hi");
    assert!(whole["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    let mut streamed = request(more);
    streamed["stream"] = json!(true);
    let events = events(&chat.ask(ROUTE, streamed).await);
    let indices = |kind: &str| -> Vec<u64> {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.filter_map(|event| event["output_index"].as_u64()).collect()
    };
    assert_eq!(indices("response.output_item.done"), [0, 1]);
    assert!(indices("response.reasoning_text.delta").iter().all(|index| *index == 0));
    assert!(indices("response.output_text.delta").iter().all(|index| *index == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_text_keeps_its_format() {
    let chat = Chat::with(TOOLS);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}},
                        "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
    let more = json!({"text": {"format": format}, "max_output_tokens": 60});
    let whole = chat.ask(ROUTE, request(more)).await.expect(200);
    assert_eq!(whole["text"]["format"], format);
    let text = whole["output"][0]["content"][0]["text"].as_str().expect("a text");
    let value: Value = serde_json::from_str(text).expect("JSON");
    assert!(value["a"].is_boolean(), "{value}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_response_cannot_have_is_refused_by_its_key() {
    let chat = Chat::with(TOOLS);
    let item = |item: Value| json!({"input": [item]});
    let image = json!([{"type": "input_image", "image_url": "x"}]);
    for (more, word) in [
        (json!({"store": true}), "`store`"),
        (json!({"previous_response_id": "resp_1"}), "`previous_response_id`"),
        (json!({"conversation": "c"}), "`conversation`"),
        (json!({"background": true}), "`background`"),
        (json!({"truncation": "auto"}), "`truncation` is `auto`, but must be `disabled`"),
        (json!({"n": 2}), "`n`"),
        (json!({"stream": true, "stream_options": {"include_usage": true}}), "`stream_options`"),
        (json!({"metadata": {"a": 1}}), "`metadata`"),
        (json!({"text": {"verbosity": "low"}}), "unknown field `verbosity`"),
        (json!({"tools": [{"type": "web_search"}]}), "`tools[0].type` is `web_search`"),
        (json!({"tools": []}), "`tools`"),
        (json!({"input": []}), "`input`"),
        (json!({"input": 1}), "`input` must be a string or an array of items"),
        (item(json!({"type": "computer_call"})), "input[0].type"),
        (item(json!({"role": "tool", "content": "a"})), "input[0].role"),
        (item(json!({"role": "user", "content": image})), "input[0].content"),
        (item(json!({"role": "user", "content": "a", "name": "b"})), "input[0].name"),
        (
            item(json!({"type": "function_call", "call_id": "a", "name": "b", "arguments": "["})),
            "input[0].arguments",
        ),
        (item(json!({"type": "function_call_output", "output": "a"})), "input[0].call_id"),
        (item(json!({"type": "reasoning", "encrypted_content": "a"})), "encrypted_content"),
        (json!({"max_output_tokens": 0}), "`max_output_tokens`"),
    ] {
        let reply = chat.ask(ROUTE, request(more.clone())).await;
        assert_eq!(reply.status, 400, "{more}: {}", reply.text);
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains(word), "{more}: {message}");
    }
}
