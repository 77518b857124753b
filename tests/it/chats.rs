//! Chats and completions over HTTP, by a decoder with random weights that reads and writes bytes.

use axum::Router;
use serde_json::{Map, Value, json};

use crate::support::{
    Families, Served,
    decoder::llama_of,
    http::{Reply, get, send},
    language::Model,
};

/// Special tokens behind the 256 bytes.
const SPECIALS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Tokens that a sequence has at most.
const CONTEXT: usize = 400;

const TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'system' %}\
                        {{ raise_exception('there is no system') }}{% endif %}<|im_start|>\
                        {{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Returns the character that stands for a byte in byte-level tokenizers.
fn character(byte: u8) -> char {
    let is_shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let before = (0..byte).filter(|byte| !is_shown(*byte)).count() as u32;
    match is_shown(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + before).expect("a character"),
    }
}

fn tokenizer() -> Value {
    let bytes = (0..=255_u8).map(|byte| (character(byte).to_string(), json!(byte)));
    let vocabulary: Map<String, Value> = bytes.collect();
    let specials = SPECIALS.iter().zip(256..).map(|(token, id)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    });
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                       "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": specials.collect::<Vec<_>>(), "pre_tokenizer": level,
        "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
}

/// Makes `model`, which has 258 token ids, one that reads and writes bytes.
pub(crate) fn with_bytes(model: Model, template: &str) -> Model {
    let mut model = model.with_text();
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    for (name, json) in [("tokenizer.json", tokenizer()), ("tokenizer_config.json", config)] {
        model.files.insert(name.to_owned(), json.to_string().into_bytes());
    }
    model
}

/// A server of a decoder that reads and writes bytes.
pub(crate) struct Chat {
    pub(crate) served: Served,
    pub(crate) app: Router,
    _model: Model,
}

impl Chat {
    pub(crate) fn new() -> Self {
        Self::changed(|_| ())
    }

    /// Serves the decoder with the chat template `template`.
    pub(crate) fn with(template: &str) -> Self {
        Self::built(template, |_| ())
    }

    /// Serves the decoder after a change of its files.
    pub(crate) fn changed(change: impl FnOnce(&mut Model)) -> Self {
        Self::built(TEMPLATE, change)
    }

    fn built(template: &str, change: impl FnOnce(&mut Model)) -> Self {
        let mut model = with_bytes(llama_of(258).with_context(CONTEXT), template);
        change(&mut model);
        let family = model.load().unwrap_or_else(|e| panic!("{e}"));
        let served = Served::new(Families::of(family));
        Self { app: served.app(), served, _model: model }
    }

    /// Sends a request and reads the answer.
    pub(crate) async fn ask(&self, path: &str, request: Value) -> Reply {
        send(&self.app, "POST", path, request.to_string()).await
    }

    /// Asks for the next message of a chat with one message, with further keys.
    pub(crate) async fn chat(&self, text: &str, more: Value) -> Reply {
        let mut request = json!({"model": "language", "max_tokens": 12, "temperature": 0,
                                 "messages": [{"role": "user", "content": text}]});
        let more = more.as_object().expect("keys").clone();
        request.as_object_mut().expect("an object").extend(more);
        self.ask("/v1/chat/completions", request).await
    }
}

/// Returns the values of the events of a stream.
pub(crate) fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    let mut data: Vec<&str> =
        reply.text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_is_answered_whole_and_as_events_with_the_same_text() {
    let chat = Chat::new();
    let whole = chat.chat("How are you?", json!({})).await.expect(200);
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(whole["object"], "chat.completion");
    // The template adds roles, line ends and special tokens to the twelve bytes.
    assert_eq!(whole["usage"]["prompt_tokens"], 12 + "user\n\n".len() + "assistant\n".len() + 3);
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    assert_eq!(whole["tessera"]["plan"], "a[0..2]");
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = events(&chat.chat("How are you?", more).await);
    let text = |event: &Value| {
        event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
    };
    let streamed: String = events.iter().map(text).collect();
    assert_eq!(streamed, choice["message"]["content"]);
    let last = events.last().expect("an event");
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn special_tokens_in_a_user_s_text_are_text() {
    let chat = Chat::new();
    let count = |reply: &Value| reply["usage"]["prompt_tokens"].as_u64().expect("a number");
    let plain = count(&chat.chat("", json!({})).await.expect(200));
    let marked = count(&chat.chat("<|im_end|>", json!({})).await.expect(200));
    assert_eq!(marked - plain, 10, "each byte is a token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_keep_a_schema_a_choice_and_a_stop_string() {
    let chat = Chat::new();
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}},
                        "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let more = json!({"response_format": format, "max_tokens": 60});
    let answer = chat.chat("a", more).await.expect(200);
    let content = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    if answer["choices"][0]["finish_reason"] == "stop" {
        let value: Value = serde_json::from_str(content).expect("JSON");
        assert!(value["a"].is_boolean(), "{value}");
    }
    let answer = chat.chat("a", json!({"guided_choice": ["left", "right"]})).await.expect(200);
    let content = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(["left", "right"].contains(&content), "{content}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let more = json!({"guided_choice": ["right"], "stop": "gh"});
    let answer = chat.chat("a", more).await.expect(200);
    assert_eq!(answer["choices"][0]["message"]["content"], "ri");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_tells_probabilities_and_repeats_with_its_seed() {
    let chat = Chat::new();
    let request = json!({"model": "language", "prompt": "abc", "max_tokens": 6, "seed": 5, "n": 2,
                         "logprobs": 3});
    let one = chat.ask("/v1/completions", request.clone()).await.expect(200);
    let again = chat.ask("/v1/completions", request).await.expect(200);
    assert_eq!(one["choices"], again["choices"]);
    assert_ne!(one["choices"][0], one["choices"][1]);
    assert_eq!(one["usage"]["prompt_tokens"], 3);
    let logprobs = &one["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"].as_array().map(Vec::len), Some(6));
    let most = logprobs["top_logprobs"][0].as_object().expect("tokens").values();
    assert!(most.clone().count() <= 3 && most.clone().all(|value| value.as_f64() < Some(0.0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_cannot_have_is_refused_by_its_key() {
    let chat = Chat::new();
    for (more, status, word) in [
        (json!({"temperature": 3}), 400, "temperature"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"max_tokens": 400}), 400, "the context holds 400"),
        (json!({"messages": []}), 400, "parameter `messages`"),
        (json!({"messages": [{"role": "king", "content": ""}]}), 400, "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 1}]}), 400, "messages[0].content"),
        (json!({"messages": [{"role": "developer", "content": ""}]}), 400, "there is no system"),
        (json!({"top_logprobs": 2}), 400, "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), 400, "`top_logprobs` is 21"),
        (json!({"guided_choice": []}), 400, "`guided_choice`"),
        (json!({"stop": [""]}), 400, "stop"),
        (json!({"n": 17}), 400, "`n`"),
        (json!({"guided_json": {"type": "number", "multipleOf": "x"}}), 400, "`guided_json`"),
        (json!({"functions": []}), 400, "`functions`"),
        (json!({"model": "other"}), 404, "other"),
        (json!({"latency_budget_ms": 50}), 400, "latency_budget_ms"),
        (json!({"prompt_name": "query"}), 400, "prompt_name"),
        (json!({"explain": true}), 400, "explain"),
        (json!({"timeout": 5000}), 400, "`timeout`"),
        (json!({"heat": 1}), 400, "logit_bias, logprobs"),
        (json!({"temperature": "hot"}), 400, "`temperature` is a string, but must be a number"),
        (json!({"stop": 5}), 400, "`stop` must be a string or an array of strings"),
        (json!({"stream_options": {"usage": true}}), 400, "`stream_options.usage`"),
        (json!({"messages": [{"content": "a"}]}), 400, "`messages[0].role` is missing"),
        (json!({"messages": [{"role": "user"}]}), 400, "`messages[0].content` is missing"),
        (json!({"messages": [{"role": "assistant", "content": null}]}), 400, "messages[0].content"),
        (json!({"max_completion_tokens": 0}), 400, "`max_completion_tokens`"),
        (json!({"guided_json": {"$ref": "#"}}), 400, "no text of the model's tokens keeps it"),
    ] {
        let reply = chat.chat("a", more.clone()).await;
        assert_eq!(reply.status, status, "{more}: {}", reply.text);
        if status != 200 {
            let message = reply.json()["error"]["message"].to_string();
            assert!(message.contains(word), "{more}: {message}");
        }
    }
    for (more, param) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"min_quality": 2}), "min_quality"),
        (json!({"guided_json": false}), "guided_json"),
        (json!({"messages": [{"role": "king"}]}), "messages[0].role"),
        (json!({"functions": []}), "functions"),
        (json!({"messages": null}), "messages"),
    ] {
        let reply = chat.chat("a", more.clone()).await.expect(400);
        assert_eq!(reply["error"]["param"], param, "{more}");
    }
    let long = chat.chat(&"a".repeat(500), json!({})).await.expect(400);
    assert_eq!(long["error"]["code"], "context_length_exceeded");
    let endless = json!({"model": "language", "prompt": "a".repeat(1 << 20)});
    let endless = chat.ask("/v1/completions", endless).await;
    assert_eq!(endless.status, 413, "{}", endless.text);
}

/// Returns the value of a metric of the family.
async fn metric(chat: &Chat, name: &str) -> f64 {
    let text = get(&chat.app, "/metrics").await.text;
    let start = format!("tessera_generation_{name} ");
    let found = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
    found.unwrap_or_else(|| panic!("no {start}in\n{text}")).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_answers_tell() {
    let chat = Chat::new();
    let (long, mut prompt, mut cached, mut generated) = ("a".repeat(100), 0.0, 0.0, 0.0);
    for (more, count) in [(json!({}), 1.0), (json!({"n": 2, "seed": 1}), 2.0)] {
        let usage = chat.chat(&long, more).await.expect(200)["usage"].clone();
        let number = |value: &Value| value.as_f64().expect("a number");
        prompt += number(&usage["prompt_tokens"]) * count;
        cached += number(&usage["prompt_tokens_details"]["cached_tokens"]);
        generated += number(&usage["completion_tokens"]);
    }
    assert!(cached >= 64.0, "the second prompt begins like the first");
    // A step is counted after its answer was sent.
    let labels = "{family=\"language\"}";
    while metric(&chat, &format!("sequences_running{labels}")).await > 0.0 {
        tokio::task::yield_now().await;
    }
    for (name, expected) in [
        ("prompt_tokens_total", prompt),
        ("generated_tokens_total", generated),
        ("prefix_cache_queried_tokens_total", prompt),
        ("time_to_first_token_seconds_count", 3.0),
        ("time_per_output_token_seconds_count", 3.0),
        ("queue_duration_seconds_count", 3.0),
        ("sequences_waiting", 0.0),
        ("preemptions_total", 0.0),
    ] {
        let found = metric(&chat, &format!("{name}{labels}")).await;
        assert!((found - expected).abs() < 0.5, "{name}: {found}, not {expected}");
    }
    let hits = metric(&chat, &format!("prefix_cache_hit_tokens_total{labels}")).await;
    assert!(hits >= cached, "{hits} {cached}");
    assert!(metric(&chat, &format!("cache_bytes{labels}")).await > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_tokens_and_tokens_texts() {
    let chat = Chat::new();
    let request = json!({"model": "language", "prompt": "é<|im_end|>"});
    let tokens = chat.ask("/tokenize", request).await.expect(200);
    assert_eq!(tokens["tokens"], json!([0xc3, 0xa9, 257]));
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(3), &json!(400)));
    let request = json!({"model": "language", "tokens": [0xc3, 0xa9, 33]});
    let text = chat.ask("/detokenize", request).await.expect(200);
    assert_eq!(text["prompt"], "é!");
    let wrong = json!({"model": "language", "tokens": [258]});
    assert_eq!(chat.ask("/detokenize", wrong).await.status, 400);
    let models = get(&chat.app, "/v1/models").await.expect(200);
    assert_eq!(models["data"][0]["id"], "language");
}
