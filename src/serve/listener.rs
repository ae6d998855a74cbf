//! Accept loop: HTTP/1.1 connections with limits on their number and on time without progress.
//!
//! hyper reads and writes each connection; [`Connections`] decides when one closes.

use super::app::App;
use super::connections::{Connection, Connections, Full, Registered};
use super::limits::LimitEvent;
use super::routes::router;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Maximum bytes of a request header, first line included; larger ones get 431.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Maximum header fields of a request; more get 431.
const MAX_HEADERS: usize = 100;
/// Bytes that hyper buffers per connection and direction.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors reserved for model parts, cache files, the runtime, and connections not yet accepted.
const RESERVED_DESCRIPTORS: u64 = 32;
/// Upper bound on connections even if the open-file limit allows more: each may hold two buffers.
const MAX_CONNECTIONS: u64 = 4096;

/// Raises the soft limit on open files to the hard one, and returns how many connections fit in it.
pub fn connection_limit() -> usize {
    let files = raise_open_file_limit();
    files.saturating_sub(RESERVED_DESCRIPTORS).clamp(8, MAX_CONNECTIONS) as usize
}

#[cfg(unix)]
fn raise_open_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    // Fails if the hard limit exceeds the system's; the soft limit then stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Windows limits open sockets by memory alone.
#[cfg(not(unix))]
fn raise_open_file_limit() -> u64 {
    u64::MAX
}

/// Serves until `ending` becomes true; then finishes the responses in progress and returns.
pub async fn listen(listener: TcpListener, app: Arc<App>, mut ending: watch::Receiver<bool>) {
    let connections = Connections::new(app.options.http.clone());
    let sweeper = tokio::spawn(sweep(connections.clone(), app.clone()));
    let router = router(app.clone());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                on_accept_error(&error, &app).await;
                continue;
            }
        };
        let registered = tokio::select! {
            registered = accept(&connections, address, &app) => registered,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        match registered {
            Some(registered) => {
                let server = Server { router: router.clone(), address, connections: connections.clone() };
                tokio::spawn(server.serve(stream, registered, ending.clone()));
            }
            None => refuse(&stream),
        }
    }
    drop(listener);
    while connections.len() > 0 {
        connections.freed().await;
    }
    sweeper.abort();
}

/// Waits for a free entry of the table; returns None if the address has too many connections.
async fn accept(connections: &Arc<Connections>, address: SocketAddr, app: &App) -> Option<Registered> {
    let mut waited = false;
    let mut evicted = false;
    loop {
        match connections.accept(address.ip()) {
            Ok(registered) => {
                app.limits.connections.store(connections.len() as u64, Ordering::Relaxed);
                return Some(registered);
            }
            Err(Full::Address) => {
                app.limits.note(LimitEvent::AddressLimit);
                return None;
            }
            Err(Full::Closing) if !evicted => {
                evicted = true;
                app.limits.note(LimitEvent::Evicted);
            }
            Err(Full::Busy) if !waited => {
                waited = true;
                app.limits.note(LimitEvent::ConnectionLimit);
            }
            Err(_) => {}
        }
        connections.freed().await;
    }
}

/// Closes timed-out connections and logs events at limits.
async fn sweep(connections: Arc<Connections>, app: Arc<App>) {
    let mut timer = tokio::time::interval(connections.sweep_interval());
    loop {
        timer.tick().await;
        connections.sweep().into_iter().for_each(|event| app.limits.note(event));
        app.limits.connections.store(connections.len() as u64, Ordering::Relaxed);
        app.limits.log(app.options.http.connections);
    }
}

async fn on_accept_error(error: &io::Error, app: &App) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    // The client disconnected before it was accepted.
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        app.limits.note(LimitEvent::AcceptFailed);
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Sends 429 in one write, if the socket accepts it, and closes.
fn refuse(stream: &TcpStream) {
    let body = r#"{"error":{"message":"too many connections from this address; try again later","type":"rate_limit_error","param":null,"code":"too_many_connections"}}"#;
    let head = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close";
    let _ = stream.try_write(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
}

/// Serves the requests of one connection.
struct Server {
    router: Router,
    address: SocketAddr,
    connections: Arc<Connections>,
}

impl Server {
    async fn serve(self, stream: TcpStream, registered: Registered, mut ending: watch::Receiver<bool>) {
        // Tokens are sent at once instead of being collected into larger packets.
        let _ = stream.set_nodelay(true);
        let connection = registered.connection.clone();
        let io = TokioIo::new(Watched { stream, connection: connection.clone() });
        let service = service_fn(|request| self.respond(request, connection.clone()));
        let mut builder = http1::Builder::new();
        builder
            .header_read_timeout(None)
            .max_header_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER_BYTES);
        let mut served = pin!(builder.serve_connection(io, service));
        loop {
            tokio::select! {
                biased;
                _ = served.as_mut() => return,
                () = async { drop(ending.wait_for(|ending| *ending).await) } => break served.as_mut().graceful_shutdown(),
                () = connection.closed() => {
                    // The request may be in the socket's buffer, not yet reported to this task.
                    tokio::task::yield_now().await;
                    let ended = poll_fn(|cx| Poll::Ready(served.as_mut().poll(cx).is_ready())).await;
                    if ended || !connection.stays_for_request() {
                        return;
                    }
                }
            }
        }
        tokio::select! {
            _ = served => {}
            () = connection.closed() => {}
        }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<Tracked>, std::convert::Infallible> {
        connection.on_request();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(self.address));
        let mut response = TowerToHyperService::new(self.router.clone()).call(request).await?;
        if self.connections.is_full() {
            // Makes room for the next client.
            let close = axum::http::HeaderValue::from_static("close");
            response.headers_mut().insert(axum::http::header::CONNECTION, close);
        }
        Ok(response.map(|body| Tracked { body, connection }))
    }
}

/// A socket that reports reads and writes to its connection.
struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Watched {
    fn note_write<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.connection.on_write(written.is_pending());
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before {
            self.connection.on_read();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A response body that marks its connection idle when dropped.
struct Tracked {
    body: Body,
    connection: Arc<Connection>,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.connection.on_response_end();
    }
}
