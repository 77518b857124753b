//! Names by which requests know what generation is asked for.

use crate::{api::error::ApiError, serve::ServeError};

/// Names of the keys of a request that other routes name otherwise.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Keys {
    /// Key of the prompt.
    pub(in crate::api) prompt: &'static str,
    /// Key of the most tokens that are generated.
    pub(in crate::api) max_tokens: &'static str,
    /// Key of the answer's form.
    pub(in crate::api) form: &'static str,
}

impl Keys {
    /// Keys of a request for the continuation of a text.
    pub(in crate::api) const OF_TEXT: Self =
        Self { prompt: "prompt", max_tokens: "max_tokens", form: "response_format" };

    /// Returns `error` by the key that the request has.
    pub(super) fn renamed(&self, error: ServeError) -> ServeError {
        match error {
            ServeError::Input { name, reason } => {
                ServeError::Input { name: self.own(name), reason }
            }
            error => error,
        }
    }

    /// Returns the request's name of `name`.
    fn own(&self, name: String) -> String {
        match name.as_str() {
            "prompt" => self.prompt.to_owned(),
            "max_tokens" => self.max_tokens.to_owned(),
            "response_format" => self.form.to_owned(),
            _ => name,
        }
    }

    /// Returns `error` by the key that the request has.
    pub(super) fn renamed_refusal(&self, error: ApiError) -> ApiError {
        match error {
            ApiError::Serve(error) => self.renamed(error).into(),
            ApiError::Parameter { name, found, expected } => {
                ApiError::Parameter { name: self.own(name), found, expected }
            }
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_key_of_its_request() {
        let keys = Keys { prompt: "input", max_tokens: "max_output_tokens", form: "text.format" };
        for (name, expected) in [
            ("prompt", "input"),
            ("max_tokens", "max_output_tokens"),
            ("response_format", "text.format"),
            ("temperature", "temperature"),
        ] {
            let error = ServeError::Input { name: name.to_owned(), reason: "r".to_owned() };
            let error = keys.renamed_refusal(error.into());
            assert_eq!(error.field().as_deref(), Some(expected));
        }
        let error = keys.renamed(ServeError::Context { context: 1, num_prompt: 2, max_tokens: 3 });
        assert!(matches!(error, ServeError::Context { .. }));
    }
}
