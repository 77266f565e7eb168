//! What is shown while something takes long: a spinner or a bar on a terminal, plain lines elsewhere. Lines that must
//! stay are written through the output, with the drawing suspended. Nothing is drawn when quiet.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// A spinner with a sentence.
pub struct Spinner {
    output: Output,
    bar: Option<ProgressBar>,
}

impl Spinner {
    pub fn new(output: &Output) -> Self {
        Self { output: output.clone(), bar: None }
    }

    /// Writes a line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    /// Shows what is being waited for; on a terminal only, and replaced by the next.
    pub fn waiting(&mut self, text: String) {
        if self.bar.is_none() && draws(&self.output) {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over a known number of bytes.
#[derive(Clone)]
pub struct ByteBar {
    output: Output,
    bar: ProgressBar,
    what: String,
    drawn: bool,
}

impl ByteBar {
    pub fn new(output: &Output, what: &str, total: u64) -> Self {
        let drawn = draws(output);
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        if !drawn {
            output.note(&format!("{what}, {}", crate::quantity::bytes(total)));
        }
        Self { output: output.clone(), bar, what: what.to_owned(), drawn }
    }

    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// The transfer begins again, at another controller.
    pub fn restart(&self) {
        if self.bar.position() > 0 {
            self.bar.reset();
            let text = format!("{} again from the start: the connection was lost", self.what);
            self.bar.suspend(|| self.output.note(&text));
        }
    }

    pub fn finish(&self) {
        if self.drawn {
            self.bar.finish_and_clear();
        }
    }
}

fn draws(output: &Output) -> bool {
    !output.is_quiet()
        && std::io::stderr().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
