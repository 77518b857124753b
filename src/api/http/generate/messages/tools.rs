//! Functions that an answer may call.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::fields::{refused, wrong};
use crate::{
    api::error::ApiError,
    input::{CallFormat, ChatTemplate},
    serve::{AnswerGrammar, CallGrammar, CallableFunction, Grammar, Other},
    tensor::json::object,
};

/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// Most bytes of all tools of a request as JSON.
const MAX_BYTES: usize = 256 * 1024;

/// Most characters of a name.
const MAX_NAME: usize = 64;

/// A tool that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ChatTool")]
#[serde(deny_unknown_fields, expecting = "a tool with `type` and `function`")]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    _kind: ToolKind,
    function: Function,
}

/// Kind of a tool.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolKind {
    Function,
}

/// A function that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    /// Name, of 1 to 64 letters, digits, `_` and `-`.
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments; without it, there are none.
    pub(crate) parameters: Option<Value>,
    /// Whether arguments keep the schema also where the model chooses to call; they always do where
    /// it must.
    pub(crate) strict: Option<bool>,
}

/// Choice among tools: `none`, `auto`, `required`, or a function.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be none, auto, required or a function")]
pub(crate) enum ToolChoice {
    Mode(ToolMode),
    Function(#[serde(deserialize_with = "object")] NamedTool),
}

/// Choice among all tools.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolMode {
    None,
    Auto,
    Required,
}

/// Function that must be called.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedTool {
    #[serde(rename = "type")]
    _kind: ToolKind,
    #[serde(deserialize_with = "object")]
    function: NamedFunction,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedFunction {
    name: String,
}

/// Keys of a request on its tools, as they came.
#[derive(Debug, Default)]
pub(crate) struct AskedTools {
    pub(crate) functions: Option<Vec<Function>>,
    pub(crate) choice: Option<ToolChoice>,
    pub(crate) is_parallel: Option<bool>,
}

/// Tools that an answer may call.
#[derive(Debug)]
pub(in crate::api) struct ToolUse {
    functions: Vec<Function>,
    choice: Choice,
    is_parallel: bool,
    format: CallFormat,
}

/// Calls for which an answer is read: their form, and the names of the functions.
#[derive(Debug)]
pub(crate) struct ReadCalls {
    pub(crate) format: CallFormat,
    pub(crate) functions: Arc<[String]>,
}

/// Choice among the tools that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    /// Index of the function that must be called.
    Named(usize),
}

impl ToolChoice {
    /// Returns the choice of the function `name`.
    pub(crate) fn named(name: String) -> Self {
        Self::Function(NamedTool { _kind: ToolKind::Function, function: NamedFunction { name } })
    }
}

impl Tool {
    pub(crate) fn into_function(self) -> Function {
        self.function
    }
}

impl AskedTools {
    /// Returns the tools that may be called by a model with `template`, and those that it is shown;
    /// `None` for none. Fails on tools, or a choice among them, that are not valid, and where the
    /// model cannot choose by itself.
    pub(crate) fn read(
        self,
        template: Option<&ChatTemplate>,
    ) -> (Option<ToolUse>, Result<Option<Vec<Value>>, ApiError>) {
        match self.checked(template) {
            Ok(tools) => {
                let shown = tools.as_ref().map(ToolUse::for_template);
                (tools, Ok(shown))
            }
            Err(error) => (None, Err(error)),
        }
    }

    fn checked(self, template: Option<&ChatTemplate>) -> Result<Option<ToolUse>, ApiError> {
        let Self { functions, choice, is_parallel } = self;
        let mode = choice.as_ref().map(|choice| matches!(choice, ToolChoice::Mode(ToolMode::None)));
        let Some(functions) = functions else {
            return match (mode, is_parallel) {
                (Some(false), _) => Err(wrong("tool_choice", "there", "absent without `tools`")),
                (_, Some(_)) => {
                    Err(wrong("parallel_tool_calls", "there", "absent without `tools`"))
                }
                (None | Some(true), None) => Ok(None),
            };
        };
        check(&functions)?;
        let choice = match choice {
            Some(ToolChoice::Mode(ToolMode::None)) => return Ok(None),
            None | Some(ToolChoice::Mode(ToolMode::Auto)) => Choice::Auto,
            Some(ToolChoice::Mode(ToolMode::Required)) => Choice::Required,
            Some(ToolChoice::Function(NamedTool { function: NamedFunction { name }, .. })) => {
                let place = functions.iter().position(|function| function.name == name);
                let expected = "the name of one of `tools`";
                Choice::Named(place.ok_or_else(|| wrong("tool_choice", "another name", expected))?)
            }
        };
        let format = match (template.and_then(ChatTemplate::calls), choice) {
            (Some(format), _) => format,
            (None, Choice::Auto) if template.is_some() => return Err(cannot_choose()),
            (None, _) => CallFormat::Hermes,
        };
        let is_parallel = is_parallel.unwrap_or(true);
        Ok(Some(ToolUse { functions, choice, is_parallel, format }))
    }
}

/// Returns the error for a model that cannot choose among tools.
fn cannot_choose() -> ApiError {
    let reason = "the model's chat template has no tools, or writes calls in a form that is not \
                  known, so that the model cannot choose whether to call one; set `tool_choice` to \
                  `required` or to a function, which must then be called, or to `none`";
    refused("tools", reason.to_owned())
}

/// Checks the functions of a request.
fn check(functions: &[Function]) -> Result<(), ApiError> {
    let found = functions.len();
    if !(1..=MAX_TOOLS).contains(&found) {
        return Err(wrong("tools", format!("of {found} tools"), "1 to 128 tools"));
    }
    let mut num_bytes = 0;
    for (index, Function { name, description, parameters, .. }) in functions.iter().enumerate() {
        let key = |field: &str| format!("tools[{index}].function.{field}");
        let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_valid) {
            let expected = "1 to 64 letters, digits, `_` and `-`";
            return Err(wrong(&key("name"), "another text", expected));
        }
        if functions[..index].iter().any(|other| other.name == *name) {
            return Err(wrong(&key("name"), "that of another tool", "one of its own"));
        }
        if !parameters.as_ref().is_none_or(Value::is_object) {
            return Err(wrong(&key("parameters"), "of another type", "a JSON schema, an object"));
        }
        num_bytes += parameters.as_ref().map_or(0, |schema| schema.to_string().len())
            + description.as_ref().map_or(0, String::len);
    }
    match num_bytes > MAX_BYTES {
        true => Err(wrong("tools", format!("of {num_bytes} bytes"), "up to 262144 bytes")),
        false => Ok(()),
    }
}

impl Function {
    /// Returns the JSON schema of the arguments.
    fn schema(&self) -> Value {
        let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
        self.parameters.clone().unwrap_or_else(none)
    }

    /// Returns the tool as templates of transformers read it.
    fn for_template(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(self.name));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), json!(description));
        }
        let none = || json!({"type": "object", "properties": {}});
        let parameters = self.parameters.clone().unwrap_or_else(none);
        function.insert("parameters".to_owned(), parameters);
        json!({"type": "function", "function": function})
    }
}

impl ToolUse {
    /// Returns the tools as templates of transformers read them.
    fn for_template(&self) -> Vec<Value> {
        self.functions.iter().map(Function::for_template).collect()
    }

    /// Returns the calls for which the answer is read.
    pub(crate) fn reads(&self) -> ReadCalls {
        let names = self.functions.iter().map(|function| function.name.clone());
        ReadCalls { format: self.format, functions: names.collect() }
    }

    /// Returns the grammar of an answer that calls functions, or has the form `form`; `None` for
    /// one that nothing binds.
    fn grammar(
        &self,
        form: Option<Grammar>,
        in_thought: bool,
    ) -> Result<Option<Grammar>, ApiError> {
        let is_forced = self.choice != Choice::Auto;
        let other = match form {
            Some(_) if is_forced => {
                let expected = "absent where a tool must be called";
                return Err(wrong("response_format", "there", expected));
            }
            Some(form) => Other::Form(Box::new(form)),
            None if is_forced => Other::Nothing,
            None if self.functions.iter().any(|own| own.strict == Some(true)) => Other::Text,
            None => return Ok(None),
        };
        let callable = |function: &Function| CallableFunction {
            name: function.name.clone(),
            parameters: match is_forced || function.strict == Some(true) {
                true => function.schema(),
                false => json!({"type": "object"}),
            },
        };
        let functions = match self.choice {
            Choice::Named(index) => vec![callable(&self.functions[index])],
            Choice::Auto | Choice::Required => self.functions.iter().map(callable).collect(),
        };
        let (format, is_parallel) = (self.format, self.is_parallel);
        let calls = Some(CallGrammar { format, functions, is_parallel });
        Ok(Some(Grammar::Answer(AnswerGrammar { in_thought, calls, other })))
    }
}

/// Returns the grammar of an answer that may use `tools` or has the form `form`, and begins in a
/// thought if `in_thought`; `None` for an answer that nothing binds.
///
/// # Errors
///
/// Fails on a form where a tool must be called.
pub(crate) fn grammar(
    tools: Option<&ToolUse>,
    form: Option<Grammar>,
    in_thought: bool,
) -> Result<Option<Grammar>, ApiError> {
    match (tools, form) {
        (Some(tools), form) => tools.grammar(form, in_thought),
        (None, Some(form)) if in_thought => {
            let other = Other::Form(Box::new(form));
            Ok(Some(Grammar::Answer(AnswerGrammar { in_thought, calls: None, other })))
        }
        (None, form) => Ok(form),
    }
}
