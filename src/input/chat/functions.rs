//! Environment of templates: the settings and functions of transformers.

use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;
use time::{OffsetDateTime, format_description::parse_strftime_owned};

use super::{json::to_json, tools::add_texts};

/// Name of the template in its environment.
pub(super) const NAME: &str = "chat";

/// Steps of a rendering; one is an instruction or 64 bytes of a result. A message takes about 50.
const FUEL: u64 = 1_000_000;

/// Error that a template raises by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Creates the environment of the template `source`.
///
/// # Errors
///
/// Fails when `source` is not a template.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    add_texts(&mut environment)?;
    Ok(environment)
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Raised(message.to_string())))
}

/// Returns the function `strftime_now` at `now`, in seconds since 1970, as UTC.
pub(super) fn strftime_now(now: i64) -> Value {
    Value::from_function(move |format: &str| {
        let wrong = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
        let time = OffsetDateTime::from_unix_timestamp(now);
        let time = time.map_err(|error| wrong(error.to_string()))?;
        let format = parse_strftime_owned(format);
        let format = format.map_err(|error| wrong(format!("strftime_now: {error}")))?;
        time.format(&format).map_err(|error| wrong(format!("strftime_now: {error}")))
    })
}

/// Returns `source` with `generation` tags, which mark what is learned in training, as conditions
/// that hold.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(length) = tag[2..].find("%}").map(|end| end + 4) else {
            text.push_str(tag);
            return text;
        };
        let (tag, after) = tag.split_at(length);
        let words = tag[2..length - 2].trim_matches(['-', '+']).trim();
        match words {
            "generation" => text.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => text.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text + rest
}
