//! The log's way to standard error, and the live line on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tracing::Level;

use crate::duration::for_people;
use crate::signals;
use crate::visible::is_visible;

/// Writes to stderr, as far as its reader takes it. A reader that has gone must not end the build.
/// One that has stopped reading (a terminal after Ctrl-S, a full pipe) must not hold up time limits,
/// signals, or other callers that wait for the lock.
pub(crate) fn write(text: &[u8]) {
    /// How long all lines together wait for such a reader.
    const PATIENCE: Duration = Duration::from_secs(1);
    /// What a pipe that is ready takes without blocking, in bytes (pipe(7), PIPE_BUF).
    const PIECE: usize = 4096;
    static LEFT: Mutex<Duration> = Mutex::new(PATIENCE);
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    for piece in text.chunks(PIECE) {
        let start = Instant::now();
        let ready = takes_more(*left);
        *left = left.saturating_sub(start.elapsed());
        if !ready || std::io::stderr().lock().write_all(piece).is_err() {
            return;
        }
    }
}

/// Returns whether stderr can be written to, by `within` from now, without waiting for its reader.
fn takes_more(within: Duration) -> bool {
    let stderr = std::io::stderr();
    let until = Instant::now() + within;
    loop {
        let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
        let left = until.saturating_duration_since(Instant::now());
        match rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            // Trying is the only way to find out.
            Err(_) => return true,
        }
    }
}

/// Returns whether stderr is a terminal that can move its cursor.
pub(crate) fn is_capable() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns `text` in one line, without anything that moves a reader's cursor or cannot be seen.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if !is_visible(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

static LIVE_LINE: OnceLock<bool> = OnceLock::new();

/// Says once whether there may be a live line.
pub(crate) fn allow_live_line(allowed: bool) {
    _ = LIVE_LINE.set(allowed && is_capable());
}

/// On a terminal, one line that moves during a wait, in the place of repeated messages. Dropping it
/// clears the line.
pub(crate) struct LiveLine(ProgressBar);

impl LiveLine {
    /// Starts the live line, where there is a terminal for it.
    pub(crate) fn start() -> Option<Self> {
        let wanted = LIVE_LINE.get().copied().unwrap_or(false) && tracing::enabled!(Level::INFO);
        wanted.then(|| {
            signals::wipe_live_line_at_end();
            // One line, cut at the terminal's width: a longer one would wrap and pile up.
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            LiveLine(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
        })
    }

    /// Shows what is waited for, and for how long it has been.
    pub(crate) fn show(&mut self, waiting: &impl Display, waited: Duration) {
        if !takes_more(Duration::ZERO) || !signals::note_live_line() {
            return;
        }
        self.0.set_message(one_line(&format!("[{}] {waiting}", for_people(waited))));
        self.0.tick();
    }
}

impl LiveLine {
    /// Writes something else to the terminal, in the place of the live line, and draws that below.
    pub(crate) fn suspended(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        if !takes_more(Duration::ZERO) {
            self.0.set_draw_target(ProgressDrawTarget::hidden());
        }
        self.0.finish_and_clear();
        signals::forget_live_line();
    }
}
