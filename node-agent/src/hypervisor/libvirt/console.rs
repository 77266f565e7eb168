//! A guest's serial port as a two-way stream: libvirt's blocking stream with a thread for each way.
//!
//! Invariant: when either side ends, both threads end: dropping our side aborts libvirt's stream, and an end of
//! libvirt's stream is an end of file on ours. Deliberately absent: the serial log, which virtlogd writes.

use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::runtime::Handle;
use virt::stream::Stream;

use super::super::{Console, HypervisorError, Result};

/// What may wait in each direction, bytes: a screen or two.
const BUFFER: usize = 16 * 1024;

/// Joins the two. Must be called within the runtime.
pub fn join(stream: Stream) -> Result<Console> {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (from_user, to_user) = tokio::io::split(theirs);
    let runtime = Handle::current();
    let failed = |error: std::io::Error| HypervisorError::Refused {
        reason: "NoThreads",
        message: error.to_string(),
        permanent: false,
    };
    let (output, handle) = (stream.clone(), runtime.clone());
    thread::Builder::new()
        .name("console-output".to_owned())
        .spawn(move || copy_output(&handle, &output, to_user))
        .map_err(failed)?;
    thread::Builder::new()
        .name("console-input".to_owned())
        .spawn(move || copy_input(&runtime, stream, from_user))
        .map_err(failed)?;
    Ok(Box::new(ours))
}

fn copy_output(runtime: &Handle, stream: &Stream, mut to_user: WriteHalf<DuplexStream>) {
    let mut buffer = [0u8; 4096];
    // Less than one byte is the end: the guest has gone, someone took the console, or it was aborted.
    while let Ok(Ok(read @ 1..)) = stream.recv(&mut buffer).map(usize::try_from) {
        if runtime.block_on(to_user.write_all(&buffer[..read.min(buffer.len())])).is_err() {
            break;
        }
    }
    // The user sees an end of file; an error means that nobody is there to see it.
    let _ = runtime.block_on(to_user.shutdown());
}

fn copy_input(runtime: &Handle, stream: Stream, mut from_user: ReadHalf<DuplexStream>) {
    let mut buffer = [0u8; 4096];
    'user: while let Ok(read @ 1..) = runtime.block_on(from_user.read(&mut buffer)) {
        let mut left = &buffer[..read];
        while !left.is_empty() {
            match stream.send(left).map(usize::try_from) {
                Ok(Ok(sent @ 1..)) => left = &left[sent.min(left.len())..],
                _ => break 'user,
            }
        }
    }
    // It ends the other thread's wait; an error means that the stream has ended already.
    let _ = stream.abort();
}
