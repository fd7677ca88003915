//! Terminals.

use std::ffi::OsString;
use std::fs;

use super::fixture::Fixture;
use super::gate::Gate;
use super::program::Running;
use super::requirements::python;

/// A program on a terminal of its own, as the leader of its session.
pub struct Terminal<'f> {
    f: &'f Fixture,
    driver: Running<'f>,
    orders: Gate,
}

const TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios
child, master = pty.fork()
if child == 0:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(sys.argv[3], sys.argv[3:])
orders = os.open(sys.argv[1], os.O_RDONLY)
screen = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
sources, pending, done = [master, orders], b"", 0
while not done:
    done, status = os.waitpid(child, os.WNOHANG)
    ready = select.select(sources, [], [], 0 if done else 0.02)[0]
    if master in ready and master in sources:
        try:
            os.write(screen, os.read(master, 65536))
        except OSError:
            sources.remove(master)
    if orders in ready:
        pending += os.read(orders, 4096)
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            order, _, what = line.decode().partition(" ")
            if order == "type":
                os.write(master, bytes.fromhex(what))
            elif order == "resize":
                size = struct.pack("HHHH", *map(int, what.split()), 0, 0)
                fcntl.ioctl(master, termios.TIOCSWINSZ, size)
            elif order == "hangup":
                sources = [orders]
                os.close(master)
if os.WIFSIGNALED(status):
    print("signal", os.WTERMSIG(status))
else:
    print("code", os.WEXITSTATUS(status))
"#;

impl<'f> Terminal<'f> {
    /// Starts a program there; none without Python.
    pub fn start(f: &'f Fixture, words: &[OsString]) -> Option<Self> {
        let python = python()?;
        let orders = Gate::new(f, "terminal.orders");
        let driver = f.program(python).args(["-I", "-S", "-c", TERMINAL, orders.arg()]);
        let driver = driver.arg(f.path("screen")).args(words).env("TERM", "xterm").start();
        Some(Self { f, driver, orders })
    }

    /// Types these bytes; `\x03` is Ctrl-C.
    pub fn press(&self, keys: &str) {
        let hex: String = keys.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.orders.say(&format!("type {hex}"));
    }

    /// Changes the size of its window.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.orders.say(&format!("resize {rows} {columns}"));
    }

    /// Hangs up, as a closed window or a lost connection does.
    pub fn hang_up(&self) {
        self.orders.say("hangup");
    }

    /// Returns everything that was written to it.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.f.path("screen")).unwrap_or_default()).into_owned()
    }

    /// Waits until its program has ended, and says how: `signal 2`, `code 0`.
    pub fn end(self) -> String {
        let finished = self.driver.wait();
        finished.assert_code(0);
        finished.stdout_line().to_owned()
    }
}
