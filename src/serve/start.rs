//! The command: arguments, the listening socket, the thread that runs the model, and an orderly end.

use super::app::{App, Options, Ready, unix_seconds};
use super::host_check::{HostPolicy, host_name};
use super::limits::HttpLimits;
use super::listener::{connection_limit, listen};
use crate::generation::sample::Sampling;
use crate::io::host_memory;
use crate::io::units::parse_size;
use crate::runtime::chat_template;
use crate::runtime::engine::Engine;
use crate::runtime::on_device;
use crate::runtime::options::{EngineArgs, at_least_one};
use crate::scheduler::{self, Gauges, Limits};
use anyhow::{Context as _, Result, bail};
use kernels::backend::Backend;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Heap arenas of the process: freed memory stays resident in each until the heap is trimmed, which happens after grammars.
/// With glibc's default, eight per core, hostile requests kept 1 GiB.
const ARENAS: u16 = 4;

/// Arguments of `kimi serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on (0: any free one, told on standard error)
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Another name that requests may give the model; may be given several times
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Replies made at the same time at most
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one())]
    parallel: usize,
    /// Memory for their states (default: half of what is free; on a GPU what its plan leaves, and no more)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Requests that may wait for their turn beside as many as --parallel; more are turned away
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: u64,
    /// Memory for the prompts and grammars of requests that run or wait; more are turned away
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    queue_memory: u64,
    /// Seconds that a client may leave its stream unread before the reply ends; it is paused meanwhile (0: no limit)
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stream_timeout: u64,
    /// Tokens of a reply where the request does not say
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Seconds a request may take (0: as long as it takes)
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// Size of a request's body at most, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    max_body: u64,
    /// Open connections at most (default: what the limit on open files allows, up to 4096)
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    max_connections: Option<usize>,
    /// A key that requests have to bring; may be given several times. Others can see it in the list of processes
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// A file with such keys, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let requests with different API keys reuse each other's cached prefixes. A client then sees by times and by
    /// cached_tokens what others have asked
    #[arg(long)]
    share_prefix_cache: bool,
    /// An origin whose web pages may ask (`*`: any); may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Serve requests whose Host header has this name; may be given several times. On loopback beside localhost,
    /// 127.0.0.1 and [::1]; on other addresses any Host is served unless this is given
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    allow_host: Vec<String>,
    /// Seconds that replies under way are given at the end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// How the log on standard error looks
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log: LogFormat,
    /// Write prompts into the log
    #[arg(long)]
    log_prompts: bool,
    /// What requests say nothing about
    #[command(flatten)]
    sampling: Sampling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// A JSON object a line
    Json,
}

/// Loads the model and serves until it is told to end.
pub fn run(args: &ServeArgs) -> Result<()> {
    kernels::heap::limit_arenas(ARENAS);
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    match args.log {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    check_clock(unix_seconds())?;
    let mut options = options(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = bind(args, &mut options).await?;
        serve(args, App::new(options), listener).await
    })
}

/// Refuses a clock (seconds of Unix time, 0 before it) whose time no `Date` header can have: hyper panics at each connection.
fn check_clock(seconds: u64) -> Result<()> {
    if (1..253_402_300_800).contains(&seconds) {
        return Ok(());
    }
    let found = if seconds == 0 { "one before" } else { "one after" };
    bail!("the machine's clock: expected a time from 1970 to 9999, found {found}")
}

fn options(args: &ServeArgs) -> Result<Options> {
    let name = args.engine.name();
    let stem = Path::new(&name).file_stem().map(|s| s.to_string_lossy().into_owned());
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = crate::io::prompt::read_text(path)?;
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned));
        if keys.is_empty() {
            bail!("{}: expected a key a line, found none", path.display());
        }
    }
    let max_body = (args.max_body as usize) << 20;
    Ok(Options {
        sampling: args.sampling,
        max_tokens: args.max_tokens.max(1),
        queue: args.queue,
        queue_bytes: args.queue_memory,
        timeout: (args.timeout > 0).then(|| Duration::from_secs(args.timeout)),
        max_body,
        http: http_limits(args, max_body),
        hosts: HostPolicy::Any,
        keys,
        share_prefix_cache: args.share_prefix_cache,
        cors: args.cors.clone(),
        names: stem.into_iter().chain(args.alias.clone()).collect(),
        log_prompts: args.log_prompts,
    })
}

fn http_limits(args: &ServeArgs, max_body: usize) -> HttpLimits {
    let fit = connection_limit();
    let connections = args.max_connections.map_or(fit, |most| most.min(fit));
    HttpLimits {
        connections,
        per_address: connections.div_ceil(2),
        body_bytes: max_body.saturating_mul(4),
        ..HttpLimits::default()
    }
}

/// Binds the address, and checks the Host of requests as that demands.
async fn bind(args: &ServeArgs, options: &mut Options) -> Result<TcpListener> {
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind(&address).await.with_context(|| address.clone())?;
    let address = listener.local_addr()?;
    tracing::info!(%address, connections = options.http.connections, "listening");
    if !address.ip().is_loopback() && options.keys.is_empty() {
        tracing::warn!("listening on a public address without an API key; set --api-key-file");
    }
    options.hosts = HostPolicy::new(address.ip(), args.allow_host.clone());
    Ok(listener)
}

async fn serve(args: &ServeArgs, app: Arc<App>, listener: TcpListener) -> Result<()> {
    let (closing, ending) = watch::channel(false);
    let server = tokio::spawn(listen(listener, app.clone(), ending));
    let mut signals = Signals::new()?;
    let (loading, hosted) = (app.clone(), args.clone());
    let thread = tokio::select! {
        thread = tokio::task::spawn_blocking(move || load(&loading, &hosted)) => thread??,
        () = signals.next() => return Ok(()),
    };
    signals.next().await;
    tracing::info!(open = app.open(), seconds = args.drain, "ending: replies under way may finish");
    app.drain();
    tokio::select! {
        () = app.idle() => {}
        () = tokio::time::sleep(Duration::from_secs(args.drain)) => {}
        () = signals.next() => {}
    }
    app.stop();
    let _ = closing.send(true);
    // Clients that keep their connection open are not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    thread.join().map_err(|_| anyhow::anyhow!("the thread that ran the model had panicked"))
}

/// Ctrl-C, and what service managers send.
struct Signals([Signal; 2]);

impl Signals {
    fn new() -> Result<Self> {
        Ok(Signals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        let [a, b] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
        }
    }
}

fn load(app: &Arc<App>, args: &ServeArgs) -> Result<JoinHandle<()>> {
    on_device!(&args.engine, Box::new(|line| tracing::warn!(line)), |engine| load_on(app, engine, args))
}

fn load_on<B: Backend>(app: &Arc<App>, engine: Engine<B>, args: &ServeArgs) -> Result<JoinHandle<()>> {
    engine.tokenizer().context("serve")?;
    if let Some(fault) = engine.template.as_ref().and_then(|template| template.fault()) {
        tracing::warn!("{}: conversations are refused", chat_template::explain(fault.clone()));
    }
    let half = || host_memory::available(Path::new("/")).map_or(u64::MAX, |free| free / 2);
    let most = engine.state_room.unwrap_or_else(half);
    // More than RAM has may be asked for, more than a device has may not.
    let bytes = args.memory.map_or(most, |asked| asked.min(engine.state_room.unwrap_or(u64::MAX)));
    let context = engine.context;
    tracing::info!(backend = engine.backend.describe(), context, state_mib = bytes >> 20, "ready");
    let unread =
        if args.stream_timeout == 0 { Duration::MAX } else { Duration::from_secs(args.stream_timeout) };
    Ok(host(app, Arc::new(engine), Limits { slots: args.parallel, bytes, unread }))
}

/// Runs the model on a thread of its own and opens the server to requests.
pub fn host<B: Backend>(app: &Arc<App>, engine: Arc<Engine<B>>, limits: Limits) -> JoinHandle<()> {
    let (commands, received) = mpsc::channel();
    let gauges = Arc::new(Gauges::default());
    let (shown, hosted, served) = (gauges.clone(), engine.clone(), app.clone());
    let thread = std::thread::spawn(move || {
        let _end = served.note_end();
        scheduler::run(&hosted, limits, &received, &shown);
        hosted.store.flush();
    });
    app.set_ready(Ready { engine, limits, commands, gauges });
    thread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_without_a_date_is_refused() {
        let refused = |seconds| check_clock(seconds).unwrap_err().to_string();
        assert!(refused(0).ends_with("expected a time from 1970 to 9999, found one before"));
        assert!(refused(253_402_300_800).ends_with("found one after"));
        assert!(check_clock(1).is_ok() && check_clock(unix_seconds()).is_ok());
    }
}
