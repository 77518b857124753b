//! Rendering of chats.

use std::{borrow::Cow, collections::BTreeMap, error::Error as _, io, iter, thread};

use minijinja::{Environment, ErrorKind, Value, value::Serde};
use serde_json::Map;

use super::{
    Chat, ChatPrompt,
    functions::{NAME, Raised, environment, strftime_now},
    guard::{Density, Marker},
    tools::{as_texts, has_tools, probe},
};
use crate::input::{CallFormat, parts::THOUGHT};

/// Largest template in bytes; the longest known have 20 kB.
const MAX_TEMPLATE_BYTES: usize = 1 << 15;

/// Most bytes of a chat that shows what a template does.
const MAX_PROBE_BYTES: usize = 1 << 16;

/// Stack of the thread that compiles; the library goes a step deeper for each operator in a row.
const STACK_BYTES: usize = 128 << 20;

/// Error of a template, or of a chat that it does not take.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// Text that is not a template.
    #[error("the chat template is not valid: {reason}")]
    Invalid {
        /// Reason, with its line.
        reason: String,
    },
    /// A chat that the template refuses in its own words.
    #[error("the chat template refuses the messages: {reason}")]
    Refused {
        /// Words of the template.
        reason: String,
    },
    /// A chat that the template cannot render.
    #[error("the chat template cannot render the messages: {reason}")]
    Failed {
        /// Reason, with its line.
        reason: String,
    },
    /// A chat on which the template works too long.
    #[error("the chat template takes too many steps for the messages")]
    Steps,
    /// A chat that is too long.
    #[error("the messages are longer than {limit} bytes as a prompt")]
    Long {
        /// Most bytes of a prompt.
        limit: usize,
    },
}

/// Template of chats, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// Special tokens that the template writes by role, such as `bos_token`.
    tokens: BTreeMap<String, String>,
    /// Whether the template writes the tools that it is given.
    takes_tools: bool,
}

impl ChatTemplate {
    /// Compiles `source`. `tokens` are special tokens by role, such as `bos_token`.
    ///
    /// # Errors
    ///
    /// Fails when `source` is not a template.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, ChatTemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let reason = format!("it has over {MAX_TEMPLATE_BYTES} bytes");
            return Err(ChatTemplateError::Invalid { reason });
        }
        let environment =
            compiled(source).map_err(|reason| ChatTemplateError::Invalid { reason })?;
        let mut own = Self { environment, source: source.to_owned(), tokens, takes_tools: true };
        let text = |has_tool| own.render(&probe(has_tool), iter::empty(), MAX_PROBE_BYTES);
        own.takes_tools = match (text(true), text(false)) {
            (Ok(with), Ok(without)) => with != without,
            (Ok(_), Err(_)) => true,
            (Err(_), _) => false,
        };
        Ok(own)
    }

    /// Returns the text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns whether the template writes the tools of a chat. One that does not is given them as
    /// text.
    pub fn takes_tools(&self) -> bool {
        self.takes_tools
    }

    /// Returns the form in which the model writes calls, or None if the template knows no tools or
    /// another form.
    pub fn calls(&self) -> Option<CallFormat> {
        CallFormat::of_template(&self.source).filter(|_| self.takes_tools)
    }

    /// Returns whether the model writes thoughts.
    pub fn thinks(&self) -> bool {
        THOUGHT.into_iter().any(|mark| self.source.contains(mark))
    }

    /// Renders `chat` into at most `max_bytes`. In its own texts, none of `specials` is a special
    /// token.
    ///
    /// # Errors
    ///
    /// Fails when the template refuses the chat, works too long on it or makes too long a prompt.
    pub fn render<'s>(
        &self,
        chat: &Chat,
        specials: impl Iterator<Item = &'s str>,
        max_bytes: usize,
    ) -> Result<ChatPrompt, ChatTemplateError> {
        let chat = match self.takes_tools || !has_tools(chat) {
            true => Cow::Borrowed(chat),
            false => Cow::Owned(as_texts(&self.environment, chat).map_err(|e| of_rendering(&e))?),
        };
        let variables = chat.variables();
        let run = Run { template: self, now: chat.now, max_bytes };
        let Some(marker) = Marker::new(specials, &self.source, &variables) else {
            let reason = "its texts have all characters for private use".to_owned();
            return Err(ChatTemplateError::Refused { reason });
        };
        // Marks everywhere are safe whatever the template does, but it may look for some text that
        // they part. It does not if the prompt is the one without marks.
        let everywhere = marker.marked(&variables, Density::Everywhere);
        if everywhere == variables {
            return Ok(ChatPrompt { text: run.render(&variables)?, guards: Vec::new() });
        }
        if let (Ok(marked), Ok(plain)) = (run.render(&everywhere), run.render(&variables)) {
            let prompt = marker.taken_out(&marked);
            if prompt.text == plain {
                return Ok(prompt);
            }
        }
        let whole = marker.marked(&variables, Density::Whole);
        Ok(marker.taken_out(&run.render(&whole)?))
    }
}

/// Returns the environment of the template `source`, or what is wrong with it.
fn compiled(source: &str) -> Result<Environment<'static>, String> {
    let compile = || environment(source).map_err(|error| reason(&error));
    thread::scope(|scope| {
        let builder = thread::Builder::new().stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, compile).map_err(|error| error.to_string())?;
        // The library counts columns in 16 bits, and may panic where they do not do.
        thread.join().unwrap_or_else(|_| Err("its lines are too long".into()))
    })
}

/// One rendering.
struct Run<'t> {
    template: &'t ChatTemplate,
    now: i64,
    max_bytes: usize,
}

impl Run<'_> {
    /// Renders the template with `variables`.
    fn render(
        &self,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, ChatTemplateError> {
        let tokens = &self.template.tokens;
        let mut context: BTreeMap<&str, Value> = tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        context.insert("strftime_now", strftime_now(self.now));
        for (name, value) in variables {
            context.insert(name, Value::from(Serde(value)));
        }
        let mut output = Bounded { bytes: Vec::new(), limit: self.max_bytes, is_full: false };
        let rendered = self.template.environment.get_template(NAME).and_then(|template| {
            template.render_captured_to(Value::from_pairs(context), &mut output).map(|_| ())
        });
        match rendered {
            Ok(()) => Ok(String::from_utf8_lossy(&output.bytes).into_owned()),
            Err(_) if output.is_full => Err(ChatTemplateError::Long { limit: self.max_bytes }),
            Err(error) => Err(of_rendering(&error)),
        }
    }
}

/// Output with a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the error of a rendering that failed by `error`.
fn of_rendering(error: &minijinja::Error) -> ChatTemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(reason)) = error.downcast_ref() {
            return ChatTemplateError::Refused { reason: reason.clone() };
        }
        if let Some(own) = error.downcast_ref::<minijinja::Error>()
            && own.kind() == ErrorKind::OutOfFuel
        {
            return ChatTemplateError::Steps;
        }
        cause = error.source();
    }
    ChatTemplateError::Failed { reason: reason(error) }
}

/// Returns what is wrong, and the line of the template.
fn reason(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let inner = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{what}{inner}{line}")
}
