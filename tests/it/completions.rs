//! Completions that are compared, and those that begin with their prompt.

use serde_json::{Value, json};

use crate::{
    chats::{Chat, events},
    tools::TOOLS,
};

const ROUTE: &str = "/v1/completions";

fn request(more: Value) -> Value {
    let mut request = json!({"model": "language", "prompt": "Hi é", "max_tokens": 8,
                             "temperature": 1.5, "seed": 3});
    request.as_object_mut().expect("an object").extend(more.as_object().expect("keys").clone());
    request
}

/// Returns the texts of an answer in their order.
fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().expect("choices");
    choices.iter().map(|choice| choice["text"].as_str().expect("a text")).collect()
}

/// Returns the mean of the logarithms of a choice's probabilities.
fn mean(choice: &Value) -> f64 {
    let all = choice["logprobs"]["token_logprobs"].as_array().expect("numbers");
    all.iter().filter_map(Value::as_f64).sum::<f64>() / all.len() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_most_likely_of_several_continuations_are_told() {
    let chat = Chat::with(TOOLS);
    let all = chat.ask(ROUTE, request(json!({"n": 6, "logprobs": 0}))).await.expect(200);
    let mut ranked: Vec<&Value> = all["choices"].as_array().expect("choices").iter().collect();
    ranked.sort_by(|one, other| mean(other).total_cmp(&mean(one)));
    let best = chat.ask(ROUTE, request(json!({"n": 2, "best_of": 6}))).await.expect(200);
    let expected: Vec<&str> = ranked[..2].iter().filter_map(|own| own["text"].as_str()).collect();
    assert_eq!(texts(&best), expected);
    assert_ne!(texts(&best), texts(&all)[..2], "they are not the first ones");
    assert_eq!(best["choices"][1]["index"], 1);
    assert!(best["choices"][0]["logprobs"].is_null());
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_may_begin_with_its_prompt() {
    let chat = Chat::with(TOOLS);
    let plain = chat.ask(ROUTE, request(json!({}))).await.expect(200);
    let expected = format!("Hi é{}", texts(&plain)[0]);
    let tokens = json!({"echo": true, "prompt": "Hi é".as_bytes()});
    for more in [json!({"echo": true}), tokens] {
        let echoed = chat.ask(ROUTE, request(more)).await.expect(200);
        assert_eq!(texts(&echoed), [expected.as_str()]);
    }
    let streamed = chat.ask(ROUTE, request(json!({"echo": true, "stream": true}))).await;
    let events = events(&streamed);
    let text: String = events.iter().flat_map(texts).collect();
    assert_eq!(text, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_completion_cannot_have_is_refused_by_its_key() {
    let chat = Chat::with(TOOLS);
    for (more, word) in [
        (json!({"n": 3, "best_of": 2}), "`best_of`"),
        (json!({"best_of": 17}), "`best_of`"),
        (json!({"best_of": 2, "stream": true}), "`best_of`"),
        (json!({"echo": true, "logprobs": 1}), "`echo`"),
        (json!({"suffix": "a"}), "`suffix`"),
        (json!({"tools": []}), "`tools`"),
        (json!({"prompt": 5}), "`prompt` must be a string, an array of one string, or"),
        (json!({"prompt": [100_000]}), "`prompt`"),
    ] {
        let reply = chat.ask(ROUTE, request(more.clone())).await;
        assert_eq!(reply.status, 400, "{more}: {}", reply.text);
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains(word), "{more}: {message}");
    }
}
