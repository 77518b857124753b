//! The `chat` command: a chat with a model of a running server, in the terminal.

use std::io::{IsTerminal, stdin};

use anyhow::{Context, anyhow, bail};
use reqwest::{Client, Response};
use serde_json::{Map, Value, json};

use super::{
    args::{Common, chat::ChatArguments},
    progress::{say_error, say_part},
};

/// Most bytes of an event of the server, and of an error.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Lines that the terminal takes as commands.
const END: &str = "/bye";
const CLEAR: &str = "/clear";

/// A chat: its messages so far, and where they are sent.
struct Chat<'a> {
    arguments: &'a ChatArguments,
    client: Client,
    messages: Vec<Value>,
}

/// Sends the message of the command line, or each line of standard input, and prints the answers.
pub(super) fn run(common: &Common, arguments: &ChatArguments) -> anyhow::Result<()> {
    crate::telemetry::start_logging(&common.log, common.log_format, None)?;
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the async runtime cannot start")?;
    let mut chat = Chat { arguments, client: Client::new(), messages: Vec::new() };
    chat.clear();
    if let Some(message) = &arguments.message {
        return tokio.block_on(chat.ask(message));
    }
    let is_terminal = stdin().is_terminal();
    if is_terminal {
        say_error(&format!("{CLEAR} begins a new chat, {END} or Ctrl-D ends"));
        say_part("> ")?;
    }
    for line in stdin().lines() {
        let line = line.context("standard input cannot be read")?;
        match line.trim() {
            END => break,
            CLEAR => chat.clear(),
            "" => {}
            message => match tokio.block_on(chat.ask(message)) {
                Err(error) if is_terminal => say_error(&format!("{error:#}")),
                outcome => outcome?,
            },
        }
        if is_terminal {
            say_part("> ")?;
        }
    }
    Ok(())
}

impl Chat<'_> {
    /// Forgets all messages but the instruction.
    fn clear(&mut self) {
        let system = self.arguments.system.iter();
        self.messages = system.map(|text| json!({"role": "system", "content": text})).collect();
    }

    /// Sends `message` behind the messages so far, and prints the answer as it comes. Without an
    /// answer, the chat stays as it was.
    async fn ask(&mut self, message: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": message}));
        match self.answer().await {
            Ok(text) => {
                self.messages.push(json!({"role": "assistant", "content": text}));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    async fn answer(&self) -> anyhow::Result<String> {
        let url = format!("{}/v1/chat/completions", self.arguments.url.trim_end_matches('/'));
        let body = Value::Object(self.request()).to_string();
        let mut request = self.client.post(&url).header("content-type", "application/json");
        if let Some(token) = &self.arguments.token {
            request = request.bearer_auth(token);
        }
        let sent = request.body(body).send().await;
        let mut response =
            sent.with_context(|| format!("no server answers at {}", self.arguments.url))?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let (mut events, mut text) = (Vec::new(), String::new());
        while let Some(part) = response.chunk().await.context("the answer broke off")? {
            events.extend_from_slice(&part);
            for event in take_events(&mut events) {
                let piece = piece_of(&event)?;
                say_part(&shown(&piece))?;
                text.push_str(&piece);
            }
            if events.len() > MAX_EVENT_BYTES {
                bail!("an event of the server has more than {MAX_EVENT_BYTES} bytes");
            }
        }
        say_part("\n")?;
        Ok(text)
    }

    /// Returns the request for the next message. What was not given is left to the server.
    fn request(&self) -> Map<String, Value> {
        let ChatArguments { family, max_tokens, temperature, seed, plan, .. } = self.arguments;
        let settings = [
            ("model", json!(family)),
            ("messages", json!(self.messages)),
            ("stream", json!(true)),
            ("max_tokens", json!(max_tokens)),
            ("temperature", json!(temperature)),
            ("seed", json!(seed)),
            ("plan", json!(plan)),
        ];
        let given = settings.into_iter().filter(|(_, value)| !value.is_null());
        given.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Returns `text` without the characters by which it could control the terminal.
fn shown(text: &str) -> String {
    text.chars().filter(|letter| matches!(letter, '\n' | '\t') || !letter.is_control()).collect()
}

/// Returns the error that the server tells.
async fn refusal(mut response: Response) -> anyhow::Error {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        body.extend_from_slice(&part);
        if body.len() > MAX_EVENT_BYTES {
            break;
        }
    }
    match serde_json::from_slice::<Value>(&body).ok().as_ref().and_then(message_of) {
        Some(message) => anyhow!("the server refuses ({status}): {message}"),
        None => anyhow!("the server refuses ({status})"),
    }
}

/// Returns the message of an error in OpenAI's form.
fn message_of(answer: &Value) -> Option<String> {
    answer.pointer("/error/message").and_then(Value::as_str).map(str::to_owned)
}

/// Takes the data of all whole events off the front of `bytes`.
fn take_events(bytes: &mut Vec<u8>) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
        let event: Vec<u8> = bytes.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&event);
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        events.extend(data.map(|data| data.trim().to_owned()));
    }
    events
}

/// Returns the text of an event, which is empty for events without one.
fn piece_of(event: &str) -> anyhow::Result<String> {
    if event == "[DONE]" {
        return Ok(String::new());
    }
    let event: Value = serde_json::from_str(event).context("an event of the server is no JSON")?;
    if let Some(message) = message_of(&event) {
        bail!("the answer broke off: {message}");
    }
    let content = event.pointer("/choices/0/delta/content").and_then(Value::as_str);
    Ok(content.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_and_in_order() {
        let mut bytes = b"data: {\"a\": 1}\n\n: a comment\n\ndata: [DONE]\n\ndata: {".to_vec();
        assert_eq!(take_events(&mut bytes), ["{\"a\": 1}", "[DONE]"]);
        assert_eq!(bytes, b"data: {");
        bytes.extend_from_slice("\"é\"}\n\n".as_bytes());
        assert_eq!(take_events(&mut bytes), ["{\"é\"}"]);
    }

    #[test]
    fn a_text_cannot_control_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\r\n\tç\u{9b}"), "a[2Jb\n\tç");
    }

    #[test]
    fn events_have_texts_or_tell_an_error() {
        let piece = |event: Value| piece_of(&event.to_string());
        let text = json!({"choices": [{"delta": {"content": "Hi\n"}}]});
        assert_eq!(piece(text).expect("a text"), "Hi\n");
        assert_eq!(piece(json!({"choices": []})).expect("no text"), "");
        assert_eq!(piece_of("[DONE]").expect("no text"), "");
        let error = piece(json!({"error": {"message": "it is too late"}})).expect_err("an error");
        assert_eq!(error.to_string(), "the answer broke off: it is too late");
    }
}
