//! A response and its items, whole and while they grow.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    super::{
        answering::Answering,
        head::unix_seconds,
        messages::answer::call_id,
        usage::{ResponseUsage, Times},
    },
    parts::{ResponseTool, ResponseToolChoice, TextForm},
};
use crate::{
    input::{CallFormat, Part},
    serve::Finish,
};

/// Keys of a request that its response repeats.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Echo {
    pub(super) model: String,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<usize>,
    pub(super) metadata: Map<String, Value>,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) text: TextForm,
    pub(super) tool_choice: ResponseToolChoice,
    pub(super) tools: Vec<ResponseTool>,
}

/// A response.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Response")]
pub(crate) struct ResponseAnswer {
    id: String,
    object: &'static str,
    /// Time in seconds since 1970.
    created_at: u64,
    completed_at: Option<u64>,
    status: Status,
    error: Option<ResponseError>,
    incomplete_details: Option<IncompleteDetails>,
    #[serde(flatten)]
    echo: Echo,
    /// Thought, message and calls.
    output: Vec<Value>,
    previous_response_id: Option<String>,
    store: bool,
    truncation: &'static str,
    usage: Option<ResponseUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Times>,
    /// Report of how the request was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    tessera: Option<Value>,
}

/// Reason why a response failed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseError {
    code: &'static str,
    message: String,
}

/// Reason why a response ended early.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct IncompleteDetails {
    reason: &'static str,
}

/// State of a response, or of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

impl Status {
    /// Returns the state of what ended by `finish`.
    pub(super) fn of(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Completed,
            Finish::Length => Self::Incomplete,
        }
    }

    /// Returns the type of the event that tells of it.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::InProgress => "response.in_progress",
            Self::Completed => "response.completed",
            Self::Incomplete => "response.incomplete",
            Self::Failed => "response.failed",
        }
    }
}

impl ResponseAnswer {
    /// Creates a response without output.
    pub(super) fn new(echo: Echo) -> Self {
        Self {
            id: new_id("resp"),
            object: "response",
            created_at: unix_seconds(),
            completed_at: None,
            status: Status::InProgress,
            error: None,
            incomplete_details: None,
            echo,
            output: Vec::new(),
            previous_response_id: None,
            store: false,
            truncation: "disabled",
            usage: None,
            timings: None,
            tessera: None,
        }
    }

    /// Ends the response with `output`.
    pub(super) fn end(&mut self, status: Status, output: Vec<Value>, answering: &Answering) {
        let usage = answering.usage();
        self.status = status;
        self.output = output;
        if status == Status::Incomplete {
            self.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
        } else {
            self.completed_at = Some(unix_seconds());
        }
        self.usage = Some(usage.counts.into());
        self.timings = Some(usage.times);
        self.tessera = Some(answering.report());
    }

    /// Ends the response with an error.
    pub(super) fn fail(&mut self, message: String) {
        self.status = Status::Failed;
        self.error = Some(ResponseError { code: "server_error", message });
    }
}

/// Returns an id that begins with `kind`.
fn new_id(kind: &str) -> String {
    format!("{kind}_{:032x}", rand::random::<u128>())
}

/// Items of a response, and the events that tell how they grew.
#[derive(Debug)]
pub(super) struct Output {
    calls: Option<CallFormat>,
    /// Items that have ended.
    items: Vec<Value>,
    open: Option<Item>,
    events: Vec<Value>,
}

/// An item that grows.
#[derive(Debug)]
struct Item {
    id: String,
    kind: Kind,
    /// Text so far, or arguments.
    text: String,
}

#[derive(Debug)]
enum Kind {
    Thought,
    Message,
    Call { call_id: String, name: String },
}

impl Item {
    /// Returns the item in the state `status`. One that has just begun has no part.
    fn value(&self, status: Status, has_part: bool) -> Value {
        let Self { id, text, .. } = self;
        let part: Vec<Value> = self.part().into_iter().filter(|_| has_part).collect();
        match &self.kind {
            Kind::Thought => json!({"id": id, "type": "reasoning", "summary": [],
                                    "content": part, "status": status}),
            Kind::Message => json!({"id": id, "type": "message", "role": "assistant",
                                    "content": part, "status": status}),
            Kind::Call { call_id, name } => {
                json!({"id": id, "type": "function_call", "call_id": call_id, "name": name,
                       "arguments": text, "status": status})
            }
        }
    }

    /// Returns the part of content that the item has, if it has one.
    fn part(&self) -> Option<Value> {
        let text = &self.text;
        match &self.kind {
            Kind::Thought => Some(json!({"type": "reasoning_text", "text": text})),
            Kind::Message => Some(json!({"type": "output_text", "text": text, "annotations": [],
                                         "logprobs": []})),
            Kind::Call { .. } => None,
        }
    }

    /// Returns the beginning of the types of the item's own events, and the key of its text.
    fn own_event(&self) -> (&'static str, &'static str) {
        match &self.kind {
            Kind::Thought => ("response.reasoning_text", "text"),
            Kind::Message => ("response.output_text", "text"),
            Kind::Call { .. } => ("response.function_call_arguments", "arguments"),
        }
    }
}

impl Output {
    /// Creates an output without items, of an answer whose calls have the form `calls`.
    pub(super) fn new(calls: Option<CallFormat>) -> Self {
        Self { calls, items: Vec::new(), open: None, events: Vec::new() }
    }

    /// Adds a part of the answer.
    pub(super) fn add(&mut self, part: &Part) {
        match part {
            Part::Thought(text) => {
                self.open(|kind| matches!(kind, Kind::Thought), || ("rs", Kind::Thought));
                self.grow(text);
            }
            Part::Text(text) => {
                self.open(|kind| matches!(kind, Kind::Message), || ("msg", Kind::Message));
                self.grow(text);
            }
            Part::Call { name, .. } => {
                let call_id = call_id(self.calls);
                let call = || ("fc", Kind::Call { call_id, name: name.clone() });
                self.open(|_| false, call);
            }
            Part::Arguments { text, .. } => self.grow(text),
        }
    }

    /// Ends the answer in the state `status`. One without items has an empty message.
    pub(super) fn end(&mut self, status: Status) {
        if self.items.is_empty() && self.open.is_none() {
            self.open(|_| false, || ("msg", Kind::Message));
        }
        self.close(status);
    }

    /// Returns the events since the last time, without their numbers.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// Returns the items that have ended.
    pub(super) fn into_items(self) -> Vec<Value> {
        self.items
    }

    /// Opens the item of `new`, unless the open one is of the kind.
    fn open(
        &mut self,
        is_kind: impl Fn(&Kind) -> bool,
        new: impl FnOnce() -> (&'static str, Kind),
    ) {
        if self.open.as_ref().is_some_and(|item| is_kind(&item.kind)) {
            return;
        }
        self.close(Status::Completed);
        let (start, kind) = new();
        let item = Item { id: new_id(start), kind, text: String::new() };
        let index = self.items.len();
        self.events.push(json!({"type": "response.output_item.added", "output_index": index,
                                "item": item.value(Status::InProgress, false)}));
        if let Some(part) = item.part() {
            self.events.push(json!({"type": "response.content_part.added", "item_id": item.id,
                                    "output_index": index, "content_index": 0, "part": part}));
        }
        self.open = Some(item);
    }

    /// Adds `text` to the open item.
    fn grow(&mut self, text: &str) {
        let index = self.items.len();
        let Some(item) = &mut self.open else { return };
        item.text.push_str(text);
        let (start, _) = item.own_event();
        let mut event = json!({"type": format!("{start}.delta"), "item_id": item.id,
                               "output_index": index, "delta": text});
        add_place(&mut event, &item.kind);
        self.events.push(event);
    }

    /// Closes the open item, if there is one.
    fn close(&mut self, status: Status) {
        let index = self.items.len();
        let Some(item) = self.open.take() else { return };
        let (start, key) = item.own_event();
        let mut event = json!({"type": format!("{start}.done"), "item_id": item.id,
                               "output_index": index});
        event[key] = item.text.clone().into();
        if let Kind::Call { name, .. } = &item.kind {
            event["name"] = name.clone().into();
        }
        add_place(&mut event, &item.kind);
        self.events.push(event);
        if let Some(part) = item.part() {
            self.events.push(json!({"type": "response.content_part.done", "item_id": item.id,
                                    "output_index": index, "content_index": 0, "part": part}));
        }
        let whole = item.value(status, true);
        self.events.push(json!({"type": "response.output_item.done", "output_index": index,
                                "item": whole}));
        self.items.push(whole);
    }
}

/// Adds to the event of an item of `kind` where its text stands.
fn add_place(event: &mut Value, kind: &Kind) {
    match kind {
        Kind::Thought => event["content_index"] = 0.into(),
        Kind::Message => {
            event["content_index"] = 0.into();
            event["logprobs"] = json!([]);
        }
        Kind::Call { .. } => {}
    }
}
