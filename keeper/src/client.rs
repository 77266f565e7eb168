//! The agent's end of the keeper's socket: one question, one answer, each with a deadline. Blocking, since the answer
//! is a matter of microseconds; an agent asks off its async threads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::protocol::{LINE_MAX, Reply, Request, Status};

/// Longer than the keeper ever takes, unless it is not there.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the keeper cannot be asked: {0}")]
    Io(#[from] io::Error),
    #[error("the keeper refuses: {0}")]
    Refused(String),
    #[error("the keeper's answer is not understood: {0}")]
    Unreadable(String),
}

/// Asks for a change.
pub fn change(socket: &Path, request: &Request) -> Result<(), ClientError> {
    match ask(socket, request)? {
        Reply::Done => Ok(()),
        other => Err(ClientError::Unreadable(format!("{other:?}"))),
    }
}

/// Asks what it holds and guards.
pub fn status(socket: &Path) -> Result<Status, ClientError> {
    match ask(socket, &Request::Status)? {
        Reply::Status(status) => Ok(status),
        other => Err(ClientError::Unreadable(format!("{other:?}"))),
    }
}

fn ask(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_MAX as u64)).read_line(&mut answer)?;
    match serde_json::from_str(&answer) {
        Ok(Reply::Refused { message }) => Err(ClientError::Refused(message)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(ClientError::Unreadable(format!("{error}: {answer:?}"))),
    }
}
