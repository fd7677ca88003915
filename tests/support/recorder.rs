//! A build command that notes signals.

use std::ffi::OsString;

use super::fixture::Fixture;
use super::gate::Gate;
use super::requirements::python;

/// A build command that notes each signal that reaches it, and ends when it is told to.
pub struct Recorder<'f> {
    f: &'f Fixture,
    gate: Gate,
    python: &'static str,
}

/// It takes signals one by one. A handler would count two that come close together as one.
const RECORDER: &str = r#"
import os, signal, sys, threading
notes = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
def end():
    gate = os.open(sys.argv[2], os.O_RDONLY)
    while True:
        word = os.read(gate, 1)
        if word != b"\n":
            os._exit(int(word))
names = """INT TERM HUP QUIT USR1 USR2 WINCH CONT
           ALRM VTALRM PROF XCPU SYS PWR IO RTMIN""".split()
numbers = [getattr(signal, "SIG" + name) for name in names]
# Signals that are ignored stay so. If they were blocked, they would arrive all the same.
numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
threading.Thread(target=end).start()
os.write(notes, ("pid %d\n" % os.getpid()).encode())
while True:
    number = signal.sigwaitinfo(numbers).si_signo
    os.write(notes, (signal.Signals(number).name[3:] + "\n").encode())
"#;

impl<'f> Recorder<'f> {
    /// Makes a recorder, at most one for a fixture; none without Python.
    pub fn new(f: &'f Fixture) -> Option<Self> {
        let python = python()?;
        Some(Self { f, gate: Gate::new(f, "recorder.gate"), python })
    }

    /// Returns its command line.
    pub fn words(&self) -> Vec<OsString> {
        let notes = self.f.path("notes");
        vec![
            self.python.into(),
            // Without the site module, Python starts in a third of the time.
            "-I".into(),
            "-S".into(),
            "-c".into(),
            RECORDER.into(),
            notes.into(),
            self.gate.path.clone().into(),
        ]
    }

    /// Waits until it runs, and returns its pid.
    pub fn wait_until_ready(&self) -> u32 {
        self.f.wait_for("the recorder", || !self.notes().is_empty());
        self.notes()[0].strip_prefix("pid ").unwrap().parse().unwrap()
    }

    /// Returns what it has noted so far, its pid first.
    pub fn notes(&self) -> Vec<String> {
        self.f.lines("notes")
    }

    /// Returns how often this signal reached it.
    pub fn count(&self, signal: &str) -> usize {
        self.notes().iter().filter(|note| *note == signal).count()
    }

    /// Waits until this signal has reached it.
    pub fn wait_for(&self, signal: &str) {
        self.f.wait_for(&format!("{signal} at the build command"), || self.count(signal) > 0);
    }

    /// Lets it end with this status, of one digit.
    pub fn end(&self, status: u8) {
        self.gate.say(&status.to_string());
    }
}
