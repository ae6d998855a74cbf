//! `kimi launch`: starts a coding agent or another client with a model of `kimi serve`. It uses a running server, or
//! starts one for the time of the client, and writes nothing into the client's own files.
//!
//! Next: [`clients`] (the table), then [`plan`] (variables, arguments, files) and [`child_server`].

mod child_server;
mod clients;
mod forwarded;
mod plan;
mod signals;

use crate::client::endpoint::{Endpoint, ListedModel};
use crate::commands::pull::resolve::resolve;
use crate::io::errors::ChildExit;
use crate::io::output::{Output, tell};
use crate::io::prompt::read_text;
use crate::io::units::grouped;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use child_server::{ChildServer, POLL_INTERVAL, terminate};
use clap::builder::PossibleValuesParser;
use clients::{CLIENTS, LaunchClient, ServedModel};
use forwarded::ForwardedEngineArgs;
use plan::{LaunchPlan, quoted};
use signals::LaunchSignals;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

/// Seconds to wait for the answer of a server that accepts connections.
const ANSWER_SECONDS: u64 = 10;
/// Key for servers without keys: most clients refuse to start without one.
const NO_KEY: &str = "none";

/// The command-line arguments of `kimi launch`.
#[derive(Clone, Debug, clap::Args)]
pub struct LaunchArgs {
    /// Client to start; without one, lists the clients
    #[arg(value_parser = PossibleValuesParser::new(CLIENTS.iter().map(|client| client.name)))]
    client: Option<String>,
    /// Arguments of the client
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
    /// Use the server at this address, with -m as the model's name and the key in OPENAI_API_KEY; starts none
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Port at which a running kimi serve is used; if there is none, one is started on a free port
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// File with the API keys of the server, of which the first is used
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Print the variables and the command as a shell script instead of starting the client
    #[arg(long, visible_alias = "dry-run")]
    print: bool,
    /// Options of the server that is started
    #[command(flatten)]
    engine: ForwardedEngineArgs,
}

/// Starts the client and waits for it.
///
/// # Errors
/// [`ChildExit`] with the client's exit code, if it is not 0.
pub fn run(args: &LaunchArgs) -> Result<()> {
    let Some(name) = &args.client else { return list() };
    let client = CLIENTS.iter().find(|client| client.name == name).context("an unknown client")?;
    let key = server_key(args)?;
    if args.print {
        return print_script(args, client, key);
    }
    let program = find_program(client)
        .ok_or_else(|| anyhow!("{} is not installed; install it with: {}", client.title, client.install))?;
    let signals = LaunchSignals::install()?;
    let dir = tempfile::Builder::new().prefix("kimi-launch-").tempdir()?;
    let (model, mut server) = match running_server(args, key.clone())? {
        Some(model) => (model, None),
        None => match start_server(args, key, dir.path(), &signals) {
            Ok((model, server)) => (model, Some(server)),
            Err(e) => return Err(keep_log(dir, e)),
        },
    };
    let mut plan = LaunchPlan::new(dir.path());
    (client.setup)(&model, &mut plan);
    plan.write_files()?;
    announce(client, &model, server.as_ref(), &plan);
    let mut command = Command::new(&program);
    plan.apply(&mut command);
    let child = command.args(&args.args).spawn().with_context(|| program.display().to_string())?;
    let status = wait(child, &signals)?;
    if let Some(ended) = server.as_mut().and_then(ChildServer::ended) {
        return Err(keep_log(dir, anyhow!("kimi serve ended before the client: {ended}")));
    }
    drop(server);
    match exit_code(status) {
        0 => Ok(()),
        code => Err(ChildExit(code).into()),
    }
}

/// Lists the clients with their programs, or the commands that install them.
fn list() -> Result<()> {
    let mut out = Output::lock();
    for client in CLIENTS {
        let place = find_program(client).map_or_else(
            || format!("not installed: {}", client.install),
            |program| program.display().to_string(),
        );
        writeln!(out, "{:<10} {:<12} {place}", client.name, client.title)?;
    }
    tell(
        "`kimi launch CLIENT` starts one with a model of this machine; --print shows the variables and the command.",
    );
    Ok(())
}

/// The key for the server: the first of the file, else that of `--url` from the environment.
fn server_key(args: &LaunchArgs) -> Result<Option<String>> {
    let Some(path) = &args.api_key_file else {
        let key = args.url.as_ref().and_then(|_| std::env::var("OPENAI_API_KEY").ok());
        return Ok(key.filter(|key| !key.is_empty()));
    };
    let text = read_text(path)?;
    let key = text.lines().map(str::trim).find(|line| !line.is_empty());
    key.map(|key| Some(key.to_owned()))
        .ok_or_else(|| anyhow!("{} has no API keys, one per line", path.display()))
}

/// Returns the model of a running server: that of `--url`, else a `kimi serve` of this machine.
///
/// # Errors
/// The server of `--url` does not answer, or a server refuses the key.
fn running_server(args: &LaunchArgs, key: Option<String>) -> Result<Option<ServedModel>> {
    if let Some(url) = &args.url {
        let name = args.engine.args.model.as_ref().map(|name| name.to_string_lossy().into_owned());
        return served_model(url, key, name.as_deref()).map(Some);
    }
    let url = format!("http://127.0.0.1:{}", args.port);
    let endpoint = Endpoint::with_key(&url, "", ANSWER_SECONDS, key.clone())?;
    loop {
        match endpoint.kimi_status().as_deref() {
            Some("ready") => break,
            Some("loading") => std::thread::sleep(POLL_INTERVAL),
            _ => return Ok(None),
        }
    }
    let model = served_model(&url, key, None).map_err(|e| {
        let hint = "that server needs its key (--api-key-file), or use another --port";
        if args.api_key_file.is_none() { e.context(hint) } else { e }
    })?;
    if args.engine.args.model.is_some() {
        tell(&format!("{url} runs {}; -m is not used (another --port starts a new server)", model.id));
    }
    Ok(Some(model))
}

/// Asks a server for its models; takes the named one, or the first.
fn served_model(url: &str, key: Option<String>, name: Option<&str>) -> Result<ServedModel> {
    let endpoint = Endpoint::with_key(url, name.unwrap_or_default(), ANSWER_SECONDS, key.clone())?;
    let models = endpoint.models()?;
    let named = |model: &&ListedModel| name.is_none_or(|name| model.id == name);
    let model = match (models.iter().find(named), name) {
        (Some(model), _) => model.clone(),
        // The endpoint may support other requests without a model list.
        (None, Some(name)) if models.is_empty() => {
            ListedModel { id: name.to_owned(), ..ListedModel::default() }
        }
        (None, name) => bail!("{url}: expected the model {name:?}, found {} others", models.len()),
    };
    Ok(ServedModel {
        url: endpoint.base().trim_end_matches("/v1").to_owned(),
        id: model.id,
        key: key.unwrap_or_else(|| NO_KEY.to_owned()),
        context: model.context,
    })
}

/// Starts a server and waits until its model is loaded.
fn start_server(
    args: &LaunchArgs,
    key: Option<String>,
    dir: &Path,
    signals: &LaunchSignals,
) -> Result<(ServedModel, ChildServer)> {
    let mut server = ChildServer::start(&server_options(args)?, dir.join("server.log"))?;
    tell(&format!("starting kimi serve, log {}", server.log().display()));
    let url = server.url(signals)?;
    let endpoint = Endpoint::with_key(&url, "", ANSWER_SECONDS, key.clone())?;
    while endpoint.kimi_status().as_deref() != Some("ready") {
        server.pause(signals)?;
    }
    Ok((served_model(&url, key, None)?, server))
}

/// The options that the server gets from this command line; it reads the environment and the configuration file itself.
fn server_options(args: &LaunchArgs) -> Result<Vec<OsString>> {
    let mut options = args.engine.given.clone();
    let mut model = args.engine.args.model.clone();
    resolve(&mut model, args.engine.args.yes)?;
    let paths = [("--model", &model), ("--api-key-file", &args.api_key_file)];
    for (name, path) in paths.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?))) {
        options.extend([name.into(), path.into()]);
    }
    Ok(options)
}

fn announce(client: &LaunchClient, model: &ServedModel, server: Option<&ChildServer>, plan: &LaunchPlan) {
    let origin = if server.is_some() { "started for this client" } else { "already running" };
    tell(&format!("server: {}, {origin}", model.url));
    let context = model.context.map(|n| format!(", context of {} tokens", grouped(n))).unwrap_or_default();
    tell(&format!("model:  {}{context}", model.id));
    let silenced = match client.silenced {
        "" => String::new(),
        silenced => format!(". Off: {silenced}"),
    };
    tell(&format!("{}: {}{silenced}", client.title, plan.summary()));
}

/// Prints what a launch would do. Without a running server it has the default address, and no limits of the model.
fn print_script(args: &LaunchArgs, client: &LaunchClient, key: Option<String>) -> Result<()> {
    let mut out = Output::lock();
    let model = match running_server(args, key.clone())? {
        Some(model) => model,
        None => {
            let options = server_options(args)?;
            let options = options.iter().map(|option| format!(" {}", quoted(&option.to_string_lossy())));
            writeln!(out, "kimi serve --port {}{} &", args.port, options.collect::<String>())?;
            ServedModel {
                url: format!("http://127.0.0.1:{}", args.port),
                id: "kimi".to_owned(),
                key: key.unwrap_or_else(|| NO_KEY.to_owned()),
                context: args.engine.args.ctx,
            }
        }
    };
    let dir = std::env::temp_dir().join(format!("kimi-launch-{}", client.name));
    let mut plan = LaunchPlan::new(&dir);
    (client.setup)(&model, &mut plan);
    let program =
        find_program(client).map_or_else(|| client.program.to_owned(), |path| path.display().to_string());
    let more: Vec<String> = args.args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    writeln!(out, "{}", plan.script(&program, &more))?;
    Ok(())
}

/// Finds the client's program in `PATH`. Kimi Code's has the name of this program, which is skipped.
fn find_program(client: &LaunchClient) -> Option<PathBuf> {
    let own = ["kimi", "kimi-local"].contains(&client.program);
    which::which_all(client.program).ok()?.find(|path| !own || !is_this_program(path))
}

/// Whether a program is this one or another version of it: only these print their name with their version.
fn is_this_program(path: &Path) -> bool {
    let out = Command::new(path).arg("--version").output();
    out.is_ok_and(|out| out.stdout.starts_with(b"kimi "))
}

/// Waits for the client; passes SIGTERM and SIGHUP on to it.
fn wait(mut child: Child, signals: &LaunchSignals) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if signals.take_terminated() {
            terminate(&mut child)?;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The exit code of the client; after a signal, that of shells.
fn exit_code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    status.code().map_or(u8::MAX, |code| u8::try_from(code).unwrap_or(u8::MAX))
}

/// Keeps the directory with the server's log, which the error names.
fn keep_log(dir: tempfile::TempDir, e: Error) -> Error {
    let log = dir.path().join("server.log");
    if e.is::<crate::io::errors::Stopped>() || !log.exists() {
        return e;
    }
    let _ = dir.keep();
    anyhow!("{e:#} (log: {})", log.display())
}
