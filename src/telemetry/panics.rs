//! What the log has of panics: where they were, and never a text that was put together.

use std::{any::Any, backtrace::Backtrace, panic, thread};

/// Logs panics from now on, instead of printing their messages.
///
/// A message that was put together may hold a part of a request: the standard library's own ones
/// quote the text whose slice is out of range. So only messages that are literals are logged.
pub fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        let (backtrace, message) = (Backtrace::capture(), literal(info.payload()));
        tracing::error!(thread = name, %backtrace, "panicked at {place}: {message}");
    }));
}

/// Returns the message of a panic if it was not put together.
fn literal(payload: &(dyn Any + Send)) -> &str {
    payload.downcast_ref::<&str>().copied().unwrap_or("its message is withheld")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_withheld_if_it_was_put_together() {
        assert_eq!(literal(&"a broken promise"), "a broken promise");
        assert_eq!(literal(&"a text".to_owned()), "its message is withheld");
        assert_eq!(literal(&7), "its message is withheld");
    }
}
