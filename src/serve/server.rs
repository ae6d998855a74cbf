//! Implements `kimi serve`: parses arguments, binds the socket, starts the scheduler thread, and shuts down gracefully.

use super::app::{App, Ready, ReplySource, ServeOptions, unix_seconds};
use super::files::store::FileOptions;
use super::host_check::{HostPolicy, host_name};
use super::limits::HttpLimits;
use super::listener::{connection_limit, listen};
use super::signals::ShutdownSignals;
use super::upstream::{UpstreamArgs, UpstreamModel};
use crate::args::{EngineArgs, at_least_one};
use crate::io::host_memory;
use crate::io::output::tell;
use crate::io::units::parse_size;
use crate::runtime::chat_template;
use crate::runtime::handle::EngineHandle;
use crate::runtime::options::{DeviceChoice, DeviceOptions, LoadOptions};
use crate::runtime::sampling_options::SamplingOptions;
use crate::scheduler::{self, Command, Gauges, SchedulerLimits, SequenceRequest};
use anyhow::{Context as _, Error, Result, anyhow, bail};
use clap::builder::NonEmptyStringValueParser;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Heap arenas of the process: freed memory stays resident in each until the heap is trimmed, which happens after grammars.
/// With glibc's default, eight per core, hostile requests kept 1 GiB.
const ARENAS: u16 = 4;
/// Name of the built-in model in requests.
const DEMO_NAME: &str = "kimi-demo";

#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    upstream: UpstreamArgs,
    /// Address to listen on (0.0.0.0: all interfaces)
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on (0: a free port, which is logged)
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Another model name to accept in requests; may be repeated
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Refuse requests for models of other names; by default every name means the loaded model
    #[arg(long)]
    strict_model: bool,
    /// Maximum number of sequences (slots) processed at the same time; a request with n replies takes n, others wait
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one())]
    parallel: usize,
    /// Memory for the KV caches and recurrent states of all running requests (default: half of the free memory; on a GPU at
    /// most what the model leaves free)
    #[arg(long, alias = "memory", value_name = "SIZE", value_parser = parse_size)]
    state_memory: Option<u64>,
    /// Maximum number of waiting requests; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: u64,
    /// Memory for prompts and grammars of running and waiting requests; more are refused with 429
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    queue_memory: u64,
    /// Seconds after which an unread stream ends; generation is paused meanwhile (0: no limit)
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stream_timeout: u64,
    /// Default maximum tokens of a reply
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Maximum seconds per request, from its arrival to the end of its reply (0: no limit)
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    /// Maximum size of a request body in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    max_body: u64,
    /// Directory for uploaded files (default: `files` in the directory for cached prefixes)
    #[arg(long, value_name = "DIR")]
    files_dir: Option<PathBuf>,
    /// Disk space for the uploaded files of an API key; more are refused with 507
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "4G")]
    files_size: u64,
    /// Maximum open connections (default: as many as the open-file limit allows, up to 4096)
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    max_connections: Option<usize>,
    /// API key to require; may be repeated. Other users can see it in the process list
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    api_key: Vec<String>,
    /// File with API keys, one per line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Share cached prefixes between API keys. Clients can then infer other clients' prompts from latency and
    /// cached_tokens
    #[arg(long)]
    share_prefix_cache: bool,
    /// Origin to allow by CORS (`*`: any); may be repeated
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Host header to accept; may be repeated. On loopback, localhost, 127.0.0.1 and [::1] are accepted too; on other
    /// addresses every Host is accepted unless this option is given
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    allow_host: Vec<String>,
    /// Seconds to finish running requests after SIGTERM or Ctrl-C
    #[arg(long, alias = "drain", value_name = "SECONDS", default_value_t = 30)]
    shutdown_grace: u64,
    /// Shut down when standard input ends, as `kimi launch` needs it
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log: LogFormat,
    /// Log the text of prompts
    #[arg(long)]
    log_prompts: bool,
    /// Log both texts where a prompt first differs from the nearest served one
    #[arg(long)]
    explain: bool,
    /// Sampling defaults for requests that do not set them
    #[command(flatten)]
    sampling: SamplingOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Plain text, one line per event
    Text,
    /// JSON, one object per line
    Json,
}

/// Loads the model and serves until SIGINT or SIGTERM.
pub fn run(args: &ServeArgs) -> Result<()> {
    kernels::heap::limit_arenas(ARENAS);
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    match args.log {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    check_clock(unix_seconds())?;
    let upstream = UpstreamModel::connect(&args.upstream, args.parallel)?;
    let mut options = options(args, upstream.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = bind(args, &mut options).await?;
        let app = App::new(options);
        if let Some(upstream) = upstream {
            tracing::info!(
                url = upstream.url(),
                model = upstream.name(),
                engine = upstream.engine(),
                context = upstream.context,
                "upstream"
            );
            app.set_ready(ReplySource::Upstream(Box::new(upstream)));
        }
        serve(args, app, listener).await
    })
}

/// Refuses a system time outside the range of the `Date` header, for which hyper panics at each connection.
fn check_clock(seconds: u64) -> Result<()> {
    if (1..253_402_300_800).contains(&seconds) {
        return Ok(());
    }
    let found = if seconds == 0 { "one before" } else { "one after" };
    bail!("system clock: expected a time from 1970 to 9999, found {found}")
}

fn options(args: &ServeArgs, upstream: Option<&UpstreamModel>) -> Result<ServeOptions> {
    let stem = match (upstream, &args.engine.options().model) {
        (Some(upstream), _) => Some(upstream.name().to_owned()),
        (None, None) => Some(DEMO_NAME.to_owned()),
        (None, Some(path)) => path.file_stem().map(|stem| stem.to_string_lossy().into_owned()),
    };
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = crate::io::prompt::read_text(path)?;
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned));
        if keys.is_empty() {
            bail!("{} has no API keys, one per line", path.display());
        }
    }
    let max_body = (args.max_body as usize) << 20;
    Ok(ServeOptions {
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
        strict_model: args.strict_model,
        log_prompts: args.log_prompts,
        explain: args.explain,
        files: file_options(args),
    })
}

fn file_options(args: &ServeArgs) -> FileOptions {
    let cache = args.engine.options().store.dir();
    let dir = args.files_dir.clone().or_else(|| Some(cache?.join("files")));
    FileOptions { dir, bytes: args.files_size }
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

/// Binds the address and sets the Host policy for it.
async fn bind(args: &ServeArgs, options: &mut ServeOptions) -> Result<TcpListener> {
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind(&address).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => {
            anyhow!("{address} is in use; choose another port with --port (0: a free port)")
        }
        _ => Error::new(e).context(address.clone()),
    })?;
    let address = listener.local_addr()?;
    tracing::info!(%address, connections = options.http.connections, "listening");
    if !address.ip().is_loopback() && options.keys.is_empty() {
        tracing::warn!("listening on a public address without an API key; set --api-key-file");
    }
    options.hosts = HostPolicy::new(address.ip(), args.allow_host.clone());
    Ok(listener)
}

/// Prints where the page and the API are, and the model's name. A log in JSON has them in its records.
fn announce(args: &ServeArgs, app: &App, address: SocketAddr) {
    if args.log == LogFormat::Json {
        return;
    }
    let local = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let ip = if address.ip().is_unspecified() { local } else { address.ip() };
    let address = SocketAddr::new(ip, address.port());
    tell(&format!("page:     http://{address}/"));
    tell(&format!("API base: http://{address}/v1"));
    tell(&format!("model:    {}", app.model_name()));
    if let Some(ready) = app.loaded() {
        tell(&format!("sampling: {}", sampling_line(&app.options, &ready.engine)));
    }
}

async fn serve(args: &ServeArgs, app: Arc<App>, listener: TcpListener) -> Result<()> {
    let address = listener.local_addr()?;
    let (closing, ending) = watch::channel(false);
    let server = tokio::spawn(listen(listener, app.clone(), ending));
    let mut signals = ShutdownSignals::new(args.exit_with_stdin)?;
    let (loading, hosted) = (app.clone(), args.clone());
    let thread = match app.upstream() {
        Some(_) => None,
        None => tokio::select! {
            thread = tokio::task::spawn_blocking(move || load(&loading, &hosted)) => Some(thread??),
            () = signals.next() => return Ok(()),
        },
    };
    announce(args, &app, address);
    signals.next().await;
    tracing::info!(
        open = app.open(),
        seconds = args.shutdown_grace,
        "shutting down: waiting for running requests"
    );
    app.drain();
    tokio::select! {
        () = app.idle() => {}
        () = tokio::time::sleep(Duration::from_secs(args.shutdown_grace)) => {}
        () = signals.next() => {}
    }
    app.stop();
    let _ = closing.send(true);
    // Idle keep-alive connections do not delay the shutdown for longer.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    let joined = thread.map_or(Ok(()), JoinHandle::join);
    joined.map_err(|_| anyhow!("the model thread panicked"))
}

fn load(app: &Arc<App>, args: &ServeArgs) -> Result<JoinHandle<()>> {
    let options = args.engine.options();
    let engine = EngineHandle::load(&options, Box::new(|line| tracing::warn!(line)))?;
    engine.tokenizer().context("serve")?;
    if let Some(fault) = engine.template.as_ref().and_then(|template| template.fault()) {
        tracing::warn!("{}: chat requests will be refused", chat_template::explain(fault.clone()));
    }
    let limits = scheduler_limits(args, &engine);
    let (context, sampling) = (engine.context, sampling_line(&app.options, &engine));
    tracing::info!(backend = engine.describe(), context, state_mib = limits.bytes >> 20, sampling, "ready");
    let on_cpu = DeviceOptions { device: Some(DeviceChoice::Cpu), ..options.device.clone() };
    let options = LoadOptions { device: on_cpu, ..options };
    let args = args.clone();
    let fallback = move || {
        let engine = EngineHandle::load(&options, Box::new(|line| tracing::warn!(line)))?;
        let limits = scheduler_limits(&args, &engine);
        tracing::info!(backend = engine.describe(), state_mib = limits.bytes >> 20, "ready, degraded");
        Ok((engine, limits))
    };
    Ok(spawn_scheduler_with(app, engine, limits, fallback))
}

fn scheduler_limits(args: &ServeArgs, engine: &EngineHandle) -> SchedulerLimits {
    let half = || host_memory::available(Path::new("/")).map_or(u64::MAX, |free| free / 2);
    let most = engine.max_state_bytes.unwrap_or_else(half);
    // The limit may exceed the RAM but not the memory of a device.
    let bytes = args.state_memory.map_or(most, |asked| asked.min(engine.max_state_bytes.unwrap_or(u64::MAX)));
    let unread =
        if args.stream_timeout == 0 { Duration::MAX } else { Duration::from_secs(args.stream_timeout) };
    SchedulerLimits { slots: args.parallel, bytes, unread }
}

/// Describes the sampling parameters of requests that name none.
fn sampling_line(options: &ServeOptions, engine: &EngineHandle) -> String {
    options.sampling.or(engine.sampling).or(SamplingOptions::BUILT_IN).line()
}

/// Runs the scheduler on its own thread and marks the server ready.
pub fn spawn_scheduler(app: &Arc<App>, engine: EngineHandle, limits: SchedulerLimits) -> JoinHandle<()> {
    spawn_scheduler_with(app, engine, limits, || bail!("no other engine"))
}

/// Runs the scheduler as [`spawn_scheduler`] does. After a failure of the GPU it continues with the engine of `fallback`.
fn spawn_scheduler_with(
    app: &Arc<App>,
    engine: EngineHandle,
    limits: SchedulerLimits,
    fallback: impl FnOnce() -> Result<(EngineHandle, SchedulerLimits)> + Send + 'static,
) -> JoinHandle<()> {
    let (commands, received) = mpsc::channel();
    let gauges = Arc::new(Gauges::default());
    let (shown, hosted, served) = (gauges.clone(), engine.clone(), app.clone());
    let thread = std::thread::spawn(move || {
        let _end = served.mark_ended_on_drop();
        let Err(interrupted) = scheduler::run(&hosted, limits, &received, &shown) else { return };
        tracing::error!("{}; loading the model on the CPU", interrupted.failure);
        served.degrade();
        shown.degraded.store(1, Ordering::Relaxed);
        match fallback() {
            Ok((engine, limits)) => continue_on(&served, &engine, limits, (interrupted.waiting, &received)),
            Err(e) => tracing::error!("the model cannot be loaded on the CPU: {e:#}"),
        }
    });
    let history = Arc::default();
    let sampling = app.options.sampling.or(engine.sampling).into();
    app.set_ready(ReplySource::Local(Ready { engine, sampling, limits, commands, gauges, history }));
    thread
}

/// Continues with an engine on the CPU: first the requests that waited, then those of the channel.
fn continue_on(
    app: &App,
    engine: &EngineHandle,
    limits: SchedulerLimits,
    (waiting, received): (Vec<SequenceRequest>, &mpsc::Receiver<Command>),
) {
    let Some(Ready { sampling, commands, gauges, history, .. }) = app.loaded() else { return };
    for request in waiting {
        // The receiver is here, so the channel is open.
        let _ = commands.send(Command::Submit(Box::new(request)));
    }
    let (commands, gauges, history) = (commands.clone(), gauges.clone(), history.clone());
    let shown = gauges.clone();
    app.set_fallback(Ready {
        engine: engine.clone(),
        sampling: *sampling,
        limits,
        commands,
        gauges,
        history,
    });
    // The CPU does not fail.
    let _ = scheduler::run(engine, limits, received, &shown);
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
