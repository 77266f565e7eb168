//! `tamdao vm console`: joins stdin and stdout with a VM's serial console. On a terminal it is raw, told of its size, and
//! put back whatever happens; Ctrl-] and then "." leaves. Without a terminal stdin is sent as it is, and when it has
//! ended the command leaves as soon as the guest has been silent for a while. When the controller in between goes away, a
//! person is told and joined again by another one. A pipe is not: what it sent meanwhile would be lost unseen.

use std::io::{IsTerminal, Read};

use anyhow::{Context, Result};
use bytes::Bytes;
use tamdao_proto::v1::transfer_service_client::TransferServiceClient;
use tamdao_proto::v1::{
    ConsoleTarget, OpenConsoleRequest, OpenConsoleResponse, TerminalSize, Vm, open_console_request::Part,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::app::App;
use crate::args::VmConsoleArgs;
use crate::client::passes;
use crate::problem::{ExitStatus, Problem};

/// Messages on their way to the guest.
const QUEUE: usize = 64;
/// What is read from stdin at once, bytes.
const READ: usize = 4 * 1024;
/// Ctrl-].
const ESCAPE: u8 = 0x1d;
const HELP: &str = "\r\n[Ctrl-] then \".\" leaves, Ctrl-] sends Ctrl-], \"?\" shows this]\r\n";

pub async fn console(app: &App, args: &VmConsoleArgs) -> Result<ExitStatus> {
    let interactive = std::io::stdin().is_terminal();
    let mut line = open(app, args, interactive).await?;
    if interactive {
        app.output.note(&format!("joined with the console of {}; leave with Ctrl-] then \".\"", args.name));
    }
    let raw = if interactive { Some(Raw::enter()?) } else { None };
    let mut person = Person {
        typed: read_stdin(),
        keys: Keys::default(),
        resized: signal(SignalKind::window_change())?,
        terminated: signal(SignalKind::terminate())?,
        hung_up: signal(SignalKind::hangup())?,
        interactive,
    };
    let end = loop {
        match converse(app, args, &mut person, &mut line).await? {
            End::Broken(status) if interactive && passes(&status) => {
                app.output.note("\r\n[the controller went away; joining again]\r");
                line = tokio::select! {
                    joined = open(app, args, interactive) => joined?,
                    () = person.leaves() => break End::Left,
                };
                app.output.note("[joined again; what was typed meanwhile is lost]\r");
            }
            end => break end,
        }
    };
    drop(raw);
    match end {
        End::Left => {
            if interactive {
                app.output.note(&format!("\nleft the console of {}", args.name));
            }
            Ok(ExitStatus::Done)
        }
        End::Closed => {
            let line = if interactive { "\n" } else { "" };
            app.output.note(&format!("{line}the console of {} was closed from the other side", args.name));
            Ok(ExitStatus::Done)
        }
        End::Broken(status) => {
            let problem = Problem::from_status(&status).about(&args.name);
            Err(problem
                .hint(format!(
                    "join it again with `tamdao vm console {}`, and --force if somebody else has it open",
                    args.name
                ))
                .into())
        }
    }
}

/// An open console: what comes from the guest and the way to it.
struct Line {
    output: Streaming<OpenConsoleResponse>,
    input: mpsc::Sender<OpenConsoleRequest>,
}

async fn open(app: &App, args: &VmConsoleArgs, interactive: bool) -> Result<Line> {
    let place = app.place::<Vm>(&args.name, false)?;
    let target = Part::Target(ConsoleTarget { agency: place.agency, name: place.name, force: args.force });
    // Each attempt needs a queue of its own; the one that was answered is used.
    let queue = std::cell::RefCell::new(None);
    let opened = app.client()?.call(|wire| {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let first = message(target.clone());
        // The queue is empty and holds more than two.
        let _ = sender.try_send(first);
        if let Some(size) = terminal_size().filter(|_| interactive) {
            let _ = sender.try_send(message(size));
        }
        *queue.borrow_mut() = Some(sender);
        async move { TransferServiceClient::new(wire).open_console(ReceiverStream::new(receiver)).await }
    });
    let output = opened.await.map_err(|problem| problem.about(&args.name))?;
    Ok(Line { output, input: queue.into_inner().context("the console was opened without a queue")? })
}

/// Who sits before the console: what is typed and what the system says of the terminal.
struct Person {
    typed: mpsc::Receiver<Bytes>,
    keys: Keys,
    resized: Signal,
    terminated: Signal,
    hung_up: Signal,
    interactive: bool,
}

impl Person {
    /// Returns when the person wants to leave; all else that is typed is thrown away.
    async fn leaves(&mut self) {
        loop {
            tokio::select! {
                input = self.typed.recv() => match input {
                    Some(input) if !self.keys.press(&input).leave => {}
                    _ => return,
                },
                _ = self.terminated.recv() => return,
                _ = self.hung_up.recv() => return,
            }
        }
    }
}

/// Carries bytes both ways until one side ends it.
async fn converse(app: &App, args: &VmConsoleArgs, person: &mut Person, line: &mut Line) -> Result<End> {
    let interactive = person.interactive;
    let (mut ended, mut leaving, mut pending) = (false, false, None);
    loop {
        // After the end of stdin every output starts the clock anew.
        let silent = tokio::time::sleep(args.idle_timeout);
        tokio::select! {
            output = line.output.message() => match output {
                Ok(Some(message)) => app.output.raw(&message.output)?,
                Ok(None) => return Ok(End::Closed),
                Err(status) => return Ok(End::Broken(status)),
            },
            input = person.typed.recv(), if !ended && pending.is_none() && !leaving => match input {
                None => ended = true,
                Some(input) if interactive => {
                    let pressed = person.keys.press(&input);
                    if pressed.help {
                        app.output.raw(HELP.as_bytes())?;
                    }
                    leaving = pressed.leave;
                    pending = Some(Bytes::from(pressed.send)).filter(|send| !send.is_empty());
                    if leaving && pending.is_none() {
                        return Ok(End::Left);
                    }
                }
                Some(input) => pending = Some(input),
            },
            // Output goes on while the guest takes no input: a guest that echoes would block both otherwise.
            place = line.input.reserve(), if pending.is_some() => match (place, pending.take()) {
                (Ok(place), Some(input)) => {
                    place.send(message(Part::Input(input)));
                    if leaving {
                        return Ok(End::Left);
                    }
                }
                // The way to the guest is shut; why, its output says.
                _ => match line.output.message().await {
                    Err(status) => return Ok(End::Broken(status)),
                    Ok(_) => return Ok(End::Closed),
                },
            },
            _ = person.resized.recv(), if interactive => {
                if let Some(size) = terminal_size() {
                    // The next change of size comes with the right one too; a console that is gone says so by its output.
                    let _ = line.input.try_send(message(size));
                }
            }
            _ = person.terminated.recv() => return Ok(End::Left),
            _ = person.hung_up.recv() => return Ok(End::Left),
            () = silent, if ended && pending.is_none() => return Ok(End::Left),
        }
    }
}

enum End {
    Left,
    Closed,
    Broken(Status),
}

fn message(part: Part) -> OpenConsoleRequest {
    OpenConsoleRequest { part: Some(part) }
}

fn terminal_size() -> Option<Part> {
    let (columns, rows) = crossterm::terminal::size().ok()?;
    Some(Part::Size(TerminalSize { rows: rows.into(), columns: columns.into() }))
}

/// Reads stdin on a thread of its own: a read from a terminal cannot be broken off, and must not keep the command from
/// ending.
fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = [0; READ];
        let mut stdin = std::io::stdin().lock();
        while let Ok(length @ 1..) = stdin.read(&mut buffer) {
            if sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The terminal in raw mode; put back when this goes, also by a panic.
struct Raw;

impl Raw {
    fn enter() -> Result<Self> {
        crossterm::terminal::enable_raw_mode().context("the terminal cannot be made raw")?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing else to try.
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

/// Finds the escape among what is typed.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Pressed {
    send: Vec<u8>,
    leave: bool,
    help: bool,
}

impl Keys {
    fn press(&mut self, typed: &[u8]) -> Pressed {
        let mut pressed = Pressed::default();
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) => pressed.send.push(byte),
                (true, b'.' | b'q') => {
                    pressed.leave = true;
                    break;
                }
                (true, b'?') => pressed.help = true,
                (true, ESCAPE) => pressed.send.push(ESCAPE),
                (true, byte) => pressed.send.extend([ESCAPE, byte]),
            }
        }
        pressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_leaves_also_when_typed_in_parts() {
        let mut keys = Keys::default();
        assert_eq!(keys.press(b"ls\r\x1d"), Pressed { send: b"ls\r".to_vec(), ..Default::default() });
        assert_eq!(keys.press(b".ignored"), Pressed { leave: true, ..Default::default() });
    }

    #[test]
    fn the_escape_itself_can_be_sent() {
        let mut keys = Keys::default();
        assert_eq!(keys.press(b"\x1d\x1d\x1dx.").send, b"\x1d\x1dx.");
        assert!(keys.press(b"\x1d?").help);
    }
}
