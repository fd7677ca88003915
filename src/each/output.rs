//! The output of several calls: each line with the name of its service or target in front.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::child::signals::{Signals, is_terminating};
use crate::terminal::LiveLine;

/// Longer lines are passed on in pieces of this many bytes.
const LINE_MAX: usize = 64 * 1024;

/// Which of our streams a call's output goes to.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// The output of all calls.
pub(super) struct Output {
    /// Log lines are JSON, and nothing is put in front of them.
    is_json: bool,
    is_live: bool,
    live_line: Arc<Mutex<Option<LiveLine>>>,
    /// Readable once all calls have ended. A process that a build left behind may keep a call's pipes
    /// open; its output is not waited for.
    calls_ended: Arc<OwnedFd>,
    calls_ended_writer: Cell<Option<OwnedFd>>,
    /// Readable once all output is passed on: each thread has a copy of the other end.
    all_passed_on: OwnedFd,
    passed_on_writer: Cell<Option<Arc<OwnedFd>>>,
}

impl Output {
    /// # Errors
    /// The system is out of descriptors.
    pub(super) fn new(is_json: bool) -> Result<Self> {
        let (calls_ended, calls_ended_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let (all_passed_on, passed_on_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let live_line = LiveLine::start();
        Ok(Output {
            is_json,
            is_live: live_line.is_some(),
            live_line: Arc::new(Mutex::new(live_line)),
            calls_ended: Arc::new(calls_ended),
            calls_ended_writer: Cell::new(Some(calls_ended_writer)),
            all_passed_on,
            passed_on_writer: Cell::new(Some(Arc::new(passed_on_writer))),
        })
    }

    /// Returns a pipe for the output of a call. Each line goes to `stream`, after `name`.
    ///
    /// # Errors
    /// The system is out of descriptors or threads.
    pub(super) fn pipe(&self, stream: Stream, name: &str) -> Result<PipeWriter> {
        let (reader, writer) = io::pipe()?;
        let copy = self.passed_on_writer.take().context("output after its end")?;
        self.passed_on_writer.set(Some(Arc::clone(&copy)));
        let prefix = if self.is_json { String::new() } else { format!("{name} | ") };
        let lines = Lines { stream, prefix, live_line: Arc::clone(&self.live_line) };
        let end = Arc::clone(&self.calls_ended);
        std::thread::Builder::new().name("output".into()).spawn(move || {
            lines.pass_on(reader, &end);
            drop(copy);
        })?;
        Ok(writer)
    }

    /// Returns whether there is a live line.
    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// Draws the live line.
    pub(super) fn show(&self, progress: &dyn Display, elapsed: Duration) {
        // A thread that has the lock may wait for a reader of our output.
        let Ok(mut line) = self.live_line.try_lock() else { return };
        if let Some(line) = line.as_mut() {
            line.show(&progress, elapsed);
        }
    }

    /// Passes on what is left after the last call has ended, unless a signal ends that.
    pub(super) fn finish(&self, signals: &Signals) {
        if let Ok(mut line) = self.live_line.try_lock() {
            *line = None;
        }
        self.calls_ended_writer.take();
        self.passed_on_writer.take();
        loop {
            match signals.next(None, &[self.all_passed_on.as_fd()]) {
                None => return,
                Some(arrived) if is_terminating(arrived.signal) => return,
                Some(_) => {}
            }
        }
    }
}

/// The lines of one stream of one call.
struct Lines {
    stream: Stream,
    prefix: String,
    live_line: Arc<Mutex<Option<LiveLine>>>,
}

impl Lines {
    /// Passes on lines until the stream ends, or until it is empty after `end` can be read.
    fn pass_on(&self, mut reader: PipeReader, end: &OwnedFd) {
        let (mut piece, mut line) = (vec![0; LINE_MAX], Vec::new());
        while wait_for_more(&reader, end) {
            let Ok(read @ 1..) = reader.read(&mut piece) else { break };
            let mut complete = Vec::new();
            for part in piece[..read].split_inclusive(|&byte| byte == b'\n') {
                line.extend_from_slice(part);
                if line.ends_with(b"\n") || line.len() >= LINE_MAX {
                    self.add(&mut complete, &mut line);
                }
            }
            self.write(&complete);
        }
        let mut last = Vec::new();
        self.add(&mut last, &mut line);
        self.write(&last);
    }

    /// Moves a line to the text. It ends with a line feed there.
    fn add(&self, text: &mut Vec<u8>, line: &mut Vec<u8>) {
        if line.is_empty() {
            return;
        }
        text.extend_from_slice(self.prefix.as_bytes());
        text.append(line);
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
    }

    /// Writes to our stream. A reader that has gone must not end the builds.
    fn write(&self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let write = || {
            _ = match self.stream {
                Stream::Stdout => {
                    io::stdout().lock().write_all(text).and_then(|()| io::stdout().flush())
                }
                Stream::Stderr => io::stderr().lock().write_all(text),
            };
        };
        // Lines of both streams one after the other, since both may go to one terminal.
        match self.live_line.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(line) => line.suspended(write),
            None => write(),
        }
    }
}

/// Waits until the pipe can be read. Returns false if it is empty and `end` can be read.
fn wait_for_more(pipe: &PipeReader, end: &OwnedFd) -> bool {
    loop {
        let mut both = [PollFd::new(pipe, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        match rustix::event::poll(&mut both, None::<&Timespec>) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            // Reading says what is wrong.
            Err(_) => return true,
        }
        let [pipe, end] = both.map(|one| !one.revents().is_empty());
        if pipe || end {
            return pipe;
        }
    }
}
