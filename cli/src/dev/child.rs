//! One node as a child process. It reads a pipe from this program and stops when the pipe closes, so that it
//! ends even when this program is killed with -9.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use super::layout::{DevNode, Layout};
use crate::exit::CommandFailure;

/// Lines of a log that are shown when a node does not start.
const LAST_LINES: usize = 10;

/// A running node.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    endpoint: String,
    log: PathBuf,
    pid: u32,
    process: tokio::process::Child,
    has_ended: bool,
}

impl Child {
    pub(super) fn start(layout: &Layout, node: &DevNode) -> Result<Self, CommandFailure> {
        let cannot =
            |error: io::Error| CommandFailure::new(format!("cannot start {}: {error}", node.name));
        let log = layout.dir().join(format!("{}.log", node.name));
        let written = File::options().create(true).append(true).open(&log).map_err(cannot)?;
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command
            .args(["serve", "--exit-with-stdin", "--name", &node.name])
            .args(["--initial-cluster", &layout.initial_cluster()])
            .args([
                "--listen",
                &node.listen.to_string(),
                "--peer-listen",
                &node.peer_listen.to_string(),
            ])
            .arg("--data-dir")
            .arg(layout.dir().join(&node.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(written)
            // Ctrl-C is this program's: it stops the nodes in order.
            .process_group(0)
            .kill_on_drop(true);
        let process = command.spawn().map_err(cannot)?;
        Ok(Self {
            name: node.name.clone(),
            endpoint: format!("http://{}", node.listen),
            log,
            pid: process.id().unwrap_or(0),
            process,
            has_ended: false,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, told once.
    pub(super) fn ended(&mut self) -> Option<String> {
        if self.has_ended {
            return None;
        }
        let ended = self.process.try_wait().ok()??;
        self.has_ended = true;
        Some(ended.to_string())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().collect::<Vec<_>>();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n         ");
        if last.is_empty() { format!("{} wrote no log", self.name) } else { last }
    }

    /// Tells it to hand over and stop.
    pub(super) fn terminate(&self) {
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now.
            kill_process(pid, Signal::TERM).ok();
        }
    }

    /// Waits for its end, and kills it when that takes too long.
    pub(super) async fn wait(mut self, deadline: Instant) {
        if timeout_at(deadline, self.process.wait()).await.is_err() {
            // It is gone either way.
            self.process.kill().await.ok();
        }
    }
}
