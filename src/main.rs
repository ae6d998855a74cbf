//! `kimi`: converts, inspects, runs and serves Kimi Linear models. Exit codes: 0 success, 1 an error, with one line on
//! standard error, 2 a usage error, 130 interrupted by Ctrl-C. Next: [`kimi::cli`].

use std::io::ErrorKind;
use std::process::ExitCode;

#[global_allocator]
static HEAP: kernels::heap::CountingAllocator = kernels::heap::CountingAllocator;

fn main() -> ExitCode {
    outlive_file_limit();
    enable_escape_sequences();
    if let Some(program) = kimi::io::worker_process::this_program() {
        kimi::io::worker_process::register(program);
    }
    let cli = match kimi::cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match kimi::cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if reader_left(&e) => ExitCode::SUCCESS,
        Err(e) if e.is::<kimi::io::errors::Stopped>() => ExitCode::from(130), // the shell convention: 128 + SIGINT
        Err(e) => {
            if let Some(exit) = e.downcast_ref::<kimi::io::errors::ChildExit>() {
                return ExitCode::from(exit.0);
            }
            kimi::io::output::tell(&format!("kimi: {}", kimi::io::errors::one_line(&e)));
            ExitCode::FAILURE
        }
    }
}

/// Makes a write beyond `ulimit -f` fail instead of ending the process.
fn outlive_file_limit() {
    #[cfg(unix)]
    // Without the handler the signal ends the process, as it does by default.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Default::default());
}

/// Makes consoles of Windows interpret the escape sequences of progress lines; other terminals do so already.
fn enable_escape_sequences() {
    #[cfg(windows)]
    let _ = anstyle_query::windows::enable_ansi_colors();
}

/// Returns whether the reader closed the pipe (`kimi inspect ... | head`), which is not an error.
fn reader_left(e: &anyhow::Error) -> bool {
    let broken = |c: &std::io::Error| c.kind() == ErrorKind::BrokenPipe;
    e.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(broken))
}
