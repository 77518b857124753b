//! A vocabulary as a GGUF file has it: tokens, their kinds, and the rules that join them.

/// Most tokens that a vocabulary may have; the largest known have 262,144.
const MAX_TOKENS: usize = 1 << 20;

/// Most bytes that a token may have.
const MAX_TOKEN_BYTES: usize = 4096;

/// Kinds of tokens, by their number in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenKind {
    /// Token that texts are made of.
    #[default]
    Normal,
    /// Token for what no other token stands for.
    Unknown,
    /// Token that controls the model, such as the end of a message.
    Control,
    /// Token that was added, and is found in texts before they are split.
    UserDefined,
    /// Token that no text has.
    Unused,
    /// Token for one byte, such as `<0x0A>`.
    Byte,
}

impl TokenKind {
    /// Returns the kind with the number `code` of `tokenizer.ggml.token_type`, or None.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        match code {
            1 => Some(Self::Normal),
            2 => Some(Self::Unknown),
            3 => Some(Self::Control),
            4 => Some(Self::UserDefined),
            5 => Some(Self::Unused),
            6 => Some(Self::Byte),
            _ => None,
        }
    }
}

/// Keys `tokenizer.*` of a GGUF file. The names of the keys are in the comments.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VocabularySpec {
    /// Kind of tokenizer (`tokenizer.ggml.model`), such as `gpt2` or `llama`.
    pub model: String,
    /// Way of splitting texts before they are encoded (`tokenizer.ggml.pre`).
    pub pre: Option<String>,
    /// Tokens by id (`tokenizer.ggml.tokens`).
    pub tokens: Vec<String>,
    /// Kinds of the tokens by id (`tokenizer.ggml.token_type`); empty if all are normal.
    pub token_kinds: Vec<TokenKind>,
    /// Pairs of tokens that are joined, the first first (`tokenizer.ggml.merges`), as `left right`.
    pub merges: Vec<String>,
    /// Scores of the tokens by id (`tokenizer.ggml.scores`); empty for none.
    pub scores: Vec<f32>,
    /// Id of the token that starts a text (`tokenizer.ggml.bos_token_id`).
    pub bos_id: Option<u32>,
    /// Id of the token that ends a text (`tokenizer.ggml.eos_token_id`).
    pub eos_id: Option<u32>,
    /// Id of the token that ends a turn (`tokenizer.ggml.eot_token_id`).
    pub eot_id: Option<u32>,
    /// Id of the token for the unknown (`tokenizer.ggml.unknown_token_id`).
    pub unknown_id: Option<u32>,
    /// Id of the padding (`tokenizer.ggml.padding_token_id`).
    pub padding_id: Option<u32>,
    /// Whether a text starts with the start token (`tokenizer.ggml.add_bos_token`), if stated.
    pub add_bos: Option<bool>,
    /// Whether a text is given a space before its first word (`tokenizer.ggml.add_space_prefix`),
    /// if stated.
    pub add_space_prefix: Option<bool>,
    /// Template of chats (`tokenizer.chat_template`).
    pub chat_template: Option<String>,
}

/// Error of a vocabulary that no tokenizer can be made of.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// A tokenizer of an unknown kind.
    #[error("`tokenizer.ggml.model` is `{model}`; supported are `gpt2` and `llama`")]
    Model {
        /// Value of the key.
        model: String,
    },
    /// An unknown way of splitting texts.
    #[error("`tokenizer.ggml.pre` is {pre}; supported are {known}")]
    Pre {
        /// Value of the key, in backticks, or `missing`.
        pre: String,
        /// Values that are supported.
        known: String,
    },
    /// A key whose value does not fit the others.
    #[error("`{key}`: {reason}")]
    Key {
        /// Name of the key.
        key: &'static str,
        /// Reason, with a description of what would be valid.
        reason: String,
    },
    /// A vocabulary from which the library makes no tokenizer.
    #[error("no tokenizer can be made of the vocabulary: {0}")]
    Tokenizer(#[source] tokenizers::Error),
    /// A `tokenizer.json` whose tokens have no bytes.
    #[error("`tokenizer.json`: {reason}")]
    Json {
        /// Reason, with a description of what is supported.
        reason: String,
    },
}

impl VocabularyError {
    /// Creates the error that the value of `key` does not fit.
    pub(super) fn key(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Key { key, reason: reason.into() }
    }
}

impl VocabularySpec {
    /// Returns the kind of the token `id`.
    pub(super) fn kind(&self, id: usize) -> TokenKind {
        self.token_kinds.get(id).copied().unwrap_or_default()
    }

    /// Checks that the keys fit each other.
    ///
    /// # Errors
    ///
    /// Fails with the name of a key that does not.
    pub(super) fn check(&self) -> Result<(), VocabularyError> {
        let num_tokens = self.tokens.len();
        let wrong = VocabularyError::key;
        if num_tokens == 0 || num_tokens > MAX_TOKENS {
            let reason = format!("has {num_tokens} tokens; valid are 1 to {MAX_TOKENS}");
            return Err(wrong("tokenizer.ggml.tokens", reason));
        }
        if let Some(id) = self.tokens.iter().position(|token| token.len() > MAX_TOKEN_BYTES) {
            let reason = format!("token {id} has over {MAX_TOKEN_BYTES} bytes");
            return Err(wrong("tokenizer.ggml.tokens", reason));
        }
        for (key, found) in [
            ("tokenizer.ggml.token_type", self.token_kinds.len()),
            ("tokenizer.ggml.scores", self.scores.len()),
        ] {
            if found != 0 && found != num_tokens {
                let reason = format!("has {found} values for {num_tokens} tokens");
                return Err(wrong(key, reason));
            }
        }
        for (key, id) in [
            ("tokenizer.ggml.bos_token_id", self.bos_id),
            ("tokenizer.ggml.eos_token_id", self.eos_id),
            ("tokenizer.ggml.eot_token_id", self.eot_id),
            ("tokenizer.ggml.unknown_token_id", self.unknown_id),
            ("tokenizer.ggml.padding_token_id", self.padding_id),
        ] {
            if let Some(id) = id.filter(|id| *id as usize >= num_tokens) {
                return Err(wrong(key, format!("is {id}, but there are {num_tokens} tokens")));
            }
        }
        Ok(())
    }
}
