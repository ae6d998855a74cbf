//! Waits for the signals that shut the server down: SIGINT and SIGTERM, on Windows Ctrl-C, Ctrl-Break, the closed console
//! window and the shutdown of the system; with `--exit-with-stdin` also the end of standard input, a pipe from the process
//! that started the server.

use std::io;
use tokio::sync::mpsc::{Receiver, Sender, channel};

pub struct ShutdownSignals(Receiver<()>);

impl ShutdownSignals {
    /// Installs the handlers; needs a tokio runtime.
    pub fn new(exit_with_stdin: bool) -> io::Result<Self> {
        // Signals during one that is not yet processed are merged with it.
        let (sender, signals) = channel(1);
        forward(&sender)?;
        if exit_with_stdin {
            // A thread of its own, because tokio would wait for its read at shutdown.
            std::thread::spawn(move || {
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
                let _ = sender.try_send(());
            });
        }
        Ok(ShutdownSignals(signals))
    }

    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

#[cfg(unix)]
fn forward(sender: &Sender<()>) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signal, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                let _ = sender.try_send(());
            }
        });
    }
    Ok(())
}

/// Windows ends the process about five seconds after its window was closed, which bounds `--shutdown-grace` then.
#[cfg(windows)]
fn forward(sender: &Sender<()>) -> io::Result<()> {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
    let (mut interrupt, mut terminate) = (ctrl_c()?, ctrl_break()?);
    let (mut close, mut shutdown) = (ctrl_close()?, ctrl_shutdown()?);
    let sender = sender.clone();
    tokio::spawn(async move {
        loop {
            let received = tokio::select! {
                received = interrupt.recv() => received,
                received = terminate.recv() => received,
                received = close.recv() => received,
                received = shutdown.recv() => received,
            };
            if received.is_none() {
                return;
            }
            let _ = sender.try_send(());
        }
    });
    Ok(())
}
