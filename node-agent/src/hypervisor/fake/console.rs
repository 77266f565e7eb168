//! The fake's serial port: what is typed comes back.
//!
//! Deliberately absent: a task of its own; it moves only when it is read or written.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that a line keeps for its reader.
const CONSOLE: usize = 64 * 1024;

/// A serial port whose guest echoes what is typed.
#[derive(Default)]
pub struct Line {
    echo: VecDeque<u8>,
    reader: Option<Waker>,
    hung_up: bool,
}

/// Ends the line for whoever holds it.
pub fn hang_up(line: &Mutex<Line>) {
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    line.hung_up = true;
    if let Some(reader) = line.reader.take() {
        reader.wake();
    }
}

/// The holder's end.
pub struct End {
    pub line: Arc<Mutex<Line>>,
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.echo.is_empty() && !line.hung_up {
            line.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = line.echo.len().min(buffer.remaining());
        let bytes: Vec<u8> = line.echo.drain(..taken).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.hung_up {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        // Like a real serial port, one that nobody reads loses what does not fit.
        let room = CONSOLE.saturating_sub(line.echo.len());
        line.echo.extend(bytes.iter().take(room));
        if let Some(reader) = line.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
