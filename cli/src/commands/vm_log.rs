//! `tamdao vm log`: the serial log that the node keeps. The contract counts bytes; people count lines, so more bytes than
//! needed are asked for and the first lines are left out. Control characters of the guest do not reach a terminal.

use std::io::IsTerminal;

use anyhow::Result;
use bytes::Bytes;
use tamdao_proto::v1::transfer_service_client::TransferServiceClient;
use tamdao_proto::v1::{ReadSerialLogRequest, Vm};

use crate::app::App;
use crate::args::VmLogArgs;
use crate::problem::{ExitStatus, Problem};
use crate::rpc;

/// Lines of boot logs are shorter than this on average, bytes.
const LINE: u64 = 512;
const LEAST: u64 = 64 * 1024;

pub async fn log(app: &App, args: &VmLogArgs) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    let request = ReadSerialLogRequest {
        agency: place.agency,
        name: place.name,
        tail_bytes: args.tail.map_or(0, |lines| (lines as u64).saturating_mul(LINE).max(LEAST)),
        follow: args.follow,
    };
    let stream = rpc!(app.client()?, TransferServiceClient, read_serial_log, request);
    let mut stream = stream.map_err(|problem| problem.about(&args.name))?;
    let mut filter = Filter { on: std::io::stdout().is_terminal(), state: State::Text };
    let mut kept = Vec::new();
    let mut first = true;
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => return Err(Problem::from_status(&status).about(&args.name).into()),
        };
        match args.tail {
            // What follows the end of the log is not known from the end itself: only the first part is cut.
            Some(lines) if args.follow && first => {
                app.output.raw(&filter.pass(last_lines(&message.chunk, lines)))?
            }
            Some(_) if !args.follow => kept.extend_from_slice(&message.chunk),
            _ => app.output.raw(&filter.pass(&message.chunk))?,
        }
        first = false;
    }
    if let Some(lines) = args.tail.filter(|_| !args.follow) {
        app.output.raw(&filter.pass(last_lines(&kept, lines)))?;
    }
    Ok(ExitStatus::Done)
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match (lines, ends.map(|(at, _)| at + 1).nth(lines.saturating_sub(1))) {
        (0, _) => &[],
        (_, Some(start)) => &text[start..],
        (_, None) => text,
    }
}

/// Takes escape sequences and control characters out of what a guest wrote: a guest must not steer an operator's
/// terminal. What goes to a file or a pipe is left as it is.
struct Filter {
    on: bool,
    state: State,
}

enum State {
    Text,
    Escape,
    /// Until a letter ends it.
    Control,
    /// Until BEL or ESC ends it.
    Message,
}

impl Filter {
    fn pass(&mut self, text: &[u8]) -> Bytes {
        if !self.on {
            return Bytes::copy_from_slice(text);
        }
        let mut passed = Vec::with_capacity(text.len());
        for &byte in text {
            self.state = match (&self.state, byte) {
                (State::Text, 0x1b) => State::Escape,
                (State::Text, b'\n' | b'\t' | b'\r' | 0x20..=0x7e | 0x80..) => {
                    passed.push(byte);
                    State::Text
                }
                (State::Text, _) => State::Text,
                (State::Escape, b'[') => State::Control,
                (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::Message,
                // Two-letter sequences name a character set in a third.
                (State::Escape, b'(' | b')' | b'#') => State::Escape,
                (State::Escape, _) => State::Text,
                (State::Control, 0x40..=0x7e) => State::Text,
                (State::Control, _) => State::Control,
                (State::Message, 0x07) => State::Text,
                (State::Message, 0x1b) => State::Escape,
                (State::Message, _) => State::Message,
            };
        }
        passed.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\nb\n", 9), b"a\nb\n");
        assert_eq!(last_lines(b"a\nb\n", 0), b"");
    }

    #[test]
    fn a_guest_does_not_steer_the_terminal() {
        let mut filter = Filter { on: true, state: State::Text };
        assert_eq!(
            filter.pass(b"[\x1b[32m  OK  \x1b[0m] up\r\n\x1b]0;owned\x07x\x1b("),
            &b"[  OK  ] up\r\nx"[..]
        );
        assert_eq!(filter.pass(b"B\x07y\x1b]0;a\x1b\\z"), &b"yz"[..]);
        filter.on = false;
        assert_eq!(filter.pass(b"\x1b[0m"), &b"\x1b[0m"[..]);
    }
}
