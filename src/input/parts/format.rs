//! Forms in which models write calls of functions.

/// Form of the calls of functions in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and Qwen 3. Small
    /// models leave the marks out.
    Hermes,
    /// `{"name": …, "parameters": …}`, and nothing else: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`: Mistral up to its tokenizer v3.
    Mistral,
}

impl CallFormat {
    /// Returns the form in which the chat template `source` writes calls, or None if it is not
    /// known.
    pub(in crate::input) fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if has("[TOOL_CALLS]") {
            // Later ones write `[TOOL_CALLS]name[ARGS]{…}`.
            return (!has("[ARGS]")).then_some(Self::Mistral);
        }
        if has("<tool_call>") {
            // Others write XML in the same mark.
            return (!has("<function=") && !has("<arg_key>")).then_some(Self::Hermes);
        }
        let is_llama = has("\"parameters\": ") && (has("ipython") || has("<|python_tag|>"));
        is_llama.then_some(Self::Llama)
    }

    /// Returns the text before calls.
    pub fn begin(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// Returns the text behind a call, beside brackets.
    pub fn end(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
            Self::Llama | Self::Mistral => "",
        }
    }

    /// Returns whether an answer may begin with a call without marks.
    pub(super) fn may_be_bare(self) -> bool {
        match self {
            Self::Hermes | Self::Llama => true,
            Self::Mistral => false,
        }
    }

    /// Returns the key of a call's arguments.
    pub fn arguments(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama => "parameters",
        }
    }
}
