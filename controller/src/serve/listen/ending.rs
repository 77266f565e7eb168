//! How a request and a connection end when one side has had enough before the other.
//!
//! A refusal often comes before the request's body: clients send the two in separate packets. A server that then
//! closes answers the body with a reset, and the client sees a broken connection in place of the refusal. So the rest
//! of a body is read and thrown away, and a connection is closed by saying so and hearing the other side out, all
//! within bounds. HTTP/2 has words of its own for this and needs none of it but the goodbye.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How much of a body is still read once nobody wants it, bytes, and for how long.
const REST_BYTES: usize = 16 << 20;
const REST_TIME: Duration = Duration::from_secs(10);
/// How long a closed connection is still heard.
const LINGER: Duration = Duration::from_secs(2);

/// The request with a body that is read to its end, whoever drops it before.
pub fn read_to_its_end(request: Request<Incoming>) -> Request<Whole> {
    let http1 = request.version() < Version::HTTP_2;
    // Who asks first has not sent the body, and reading it would be the permission to do so.
    let asks = request.headers().contains_key(http::header::EXPECT);
    request.map(|body| Whole { body: Some(body), http1: http1 && !asks })
}

/// A body whose rest is read and thrown away when it is dropped.
pub struct Whole {
    /// None only while it is dropped.
    body: Option<Incoming>,
    http1: bool,
}

impl Drop for Whole {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| self.http1 && !body.is_end_stream()) else {
            return;
        };
        // At the very end of the process there is nobody left to read it.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(REST_TIME, async move {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > REST_BYTES {
                    return;
                }
            }
        }));
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

/// A connection's stream, shared by the HTTP library and the task that ends it: the library drops the stream of a
/// connection that it gives up, for a timeout say, and TLS would then end without its goodbye.
#[derive(Clone)]
pub struct Line(Arc<Mutex<TlsStream<TcpStream>>>);

impl Line {
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    /// Says goodbye, and hears the other side out for a while: to close while it sends would be a reset, which may
    /// take the last answer with it.
    pub async fn end(mut self, stop: &CancellationToken) {
        let heard_out = async {
            self.shutdown().await?;
            let mut nothing = [0; 4_096];
            while self.read(&mut nothing).await? > 0 {}
            io::Result::Ok(())
        };
        tokio::select! {
            // The other side may be gone already, and that is an end too.
            _ = tokio::time::timeout(LINGER, heard_out) => {}
            () = stop.cancelled() => {}
        }
    }

    fn stream(&self) -> MutexGuard<'_, TlsStream<TcpStream>> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_read(cx, to)
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream()).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_shutdown(cx)
    }
}
