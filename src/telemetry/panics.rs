//! Panics in the log: their places, and never a text that was put together.

use std::{backtrace::Backtrace, panic, thread};

use crate::tensor::panic_literal;

/// Logs panics from now on, instead of printing their messages. Only messages that are literals are
/// logged.
pub fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        let (backtrace, message) = (Backtrace::capture(), panic_literal(info.payload()));
        tracing::error!(thread = name, %backtrace, "panicked at {place}: {message}");
    }));
}
