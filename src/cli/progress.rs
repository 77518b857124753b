//! Progress bars, and output to the terminal.

use std::{
    io::{IsTerminal, Write, stdout},
    sync::Mutex,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::fit::{Progress, ends_a_tenth};

/// Progress that is shown as bars on a terminal, and as lines elsewhere.
#[derive(Debug, Default)]
pub(super) struct Bars {
    bar: Mutex<Option<ProgressBar>>,
}

impl Progress for Bars {
    fn phase(&self, name: &str, length: u64) {
        let bar = if std::io::stderr().is_terminal() {
            let style = "{msg:18} {bar:40} {pos}/{len}  {elapsed}, {eta} left";
            let style = ProgressStyle::with_template(style);
            ProgressBar::new(length)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(name.to_owned())
        } else {
            say_error(&format!("{name}: {length} steps"));
            ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden())
        };
        if let Ok(mut current) = self.bar.lock()
            && let Some(old) = current.replace(bar)
        {
            old.finish();
        }
    }

    fn step(&self) {
        let Ok(bar) = self.bar.lock() else { return };
        let Some(bar) = bar.as_ref() else { return };
        bar.inc(1);
        let (position, length) = (bar.position(), bar.length().unwrap_or(0));
        if bar.is_hidden() && ends_a_tenth(position, length) {
            say_error(&format!("{position} of {length} after {:.0?}", bar.elapsed()));
        }
    }

    fn note(&self, message: &str) {
        match self.bar.lock() {
            Ok(bar) => match bar.as_ref().filter(|bar| !bar.is_hidden()) {
                Some(bar) => bar.println(message),
                None => say_error(message),
            },
            Err(_) => say_error(message),
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Ok(bar) = self.bar.get_mut() {
            bar.iter().for_each(ProgressBar::finish);
        }
    }
}

/// Writes a line to standard output.
#[expect(clippy::print_stdout, reason = "this is what the commands print")]
pub(super) fn say(line: &str) {
    println!("{line}");
}

/// Writes a part of a line to standard output, at once.
///
/// # Errors
///
/// Fails when nobody reads it any more.
pub(super) fn say_part(text: &str) -> std::io::Result<()> {
    let mut output = stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Writes a line to standard error.
#[expect(clippy::print_stderr, reason = "this is what the commands tell besides their result")]
pub(super) fn say_error(line: &str) {
    eprintln!("{line}");
}
