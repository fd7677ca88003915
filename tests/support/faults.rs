//! System calls that fail.

use rustix::fs::OFlags;

use super::fixture::Fixture;
use super::program::{Invocation, buildlock_path};
use super::requirements::{python, skip};

/// Makes system calls fail, and becomes another program: `RULE... -- PROGRAM [ARG]...`.
///
/// A rule is `CALL:ERROR[:TIMES[:ARGUMENT:MASK:VALUE]]`. With TIMES 0, the call always fails. A
/// rule with an argument counts only where that argument has these bits.
///
/// Calls that always fail are answered by the kernel alone. For the others it asks a process that
/// counts, which is not a child of the program and ends with it.
const FAULTS: &str = r#"
import array, ctypes, errno, fcntl, os, platform, select, socket, struct, sys

NUMBERS = {
    "x86_64": {"flock": 73, "openat": 257, "linkat": 265, "renameat2": 316, "fchmod": 91,
               "chmod": 90, "fchmodat": 268, "ftruncate": 77, "mkdirat": 258, "pwrite64": 18,
               "openat2": 437},
    "aarch64": {"flock": 32, "openat": 56, "linkat": 37, "renameat2": 276, "fchmod": 52,
                "chmod": 53, "fchmodat": 53, "ftruncate": 46, "mkdirat": 34, "pwrite64": 68,
                "openat2": 437},
}
SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
numbers = NUMBERS[platform.machine()]
split = sys.argv.index("--")
rules, program = sys.argv[1:split], sys.argv[split + 1:]

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, ERRNO, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
code, counted = [], []
for rule in rules:
    parts = rule.split(":")
    call, error, times, argument, mask, value = parts + ["0", "", "", ""][len(parts) - 2:]
    number, error = numbers[call], getattr(errno, error)
    if int(times):
        counted.append([number, error, int(times)])
    verdict = NOTIFY if int(times) else ERRNO | error
    block = [(LOAD, 0, 0, 0), (EQUAL, 0, None, number)]
    if argument:
        block += [(LOAD, 0, 0, 16 + 8 * int(argument)), (AND, 0, 0, int(mask, 8)),
                  (EQUAL, 0, None, int(value, 8))]
    block += [(RETURN, 0, 0, verdict)]
    # A rule that does not fit goes on after the block.
    code += [(c, t, len(block) - i - 1 if f is None else f, k)
             for i, (c, t, f, k) in enumerate(block)]
code += [(RETURN, 0, 0, ALLOW)]

libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
filter = Program(len(code), ctypes.addressof(text))

def count(listener):
    RECEIVE, SEND, SIZE = 0xC0502100, 0xC0182101, 80
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        for _, event in poll.poll():
            if event & select.POLLHUP:
                os._exit(0)
            request = bytearray(SIZE)
            try:
                fcntl.ioctl(listener, RECEIVE, request)
                identity, _, _, number = struct.unpack_from("QIIi", request)
                answer = struct.pack("QqiI", identity, 0, 0, 1)  # go on
                for rule in counted:
                    if rule[0] == number and rule[2] > 0:
                        rule[2] -= 1
                        answer = struct.pack("QqiI", identity, 0, -rule[1], 0)
                fcntl.ioctl(listener, SEND, answer)
            except OSError as error:
                # The process that asked has ended.
                if error.errno not in (errno.ENOENT, errno.EINTR):
                    raise

if counted:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            ours.close()
            _, listeners, _, _ = socket.recv_fds(theirs, 1, 1)
            theirs.send(b"x")
            theirs.close()
            count(listeners[0])
        os._exit(0)
    os.waitpid(child, 0)
    theirs.close()
listener = libc.syscall(SECCOMP, 1, 8 if counted else 0, ctypes.byref(filter))
assert listener >= 0, os.strerror(ctypes.get_errno())
if counted:
    socket.send_fds(ours, [b"x"], [listener])
    os.close(listener)
    assert ours.recv(1) == b"x"
    ours.close()
os.execvp(program[0], program)
"#;

/// Prepares buildlock so that some of its system calls fail (`flock:ENOLCK`, `openat:ESTALE:1`),
/// and those of the build command as well.
///
/// Returns none without Python, or on a machine whose system calls have unknown numbers.
pub fn with_faults<'f>(f: &'f Fixture, rules: &[&str]) -> Option<Invocation<'f>> {
    if !matches!(std::env::consts::ARCH, "x86_64" | "aarch64") {
        skip("knows no system calls of this machine");
        return None;
    }
    let python = python()?;
    let script = f.path("faults.py");
    std::fs::write(&script, FAULTS).unwrap();
    let program = f.program(python).args(["-I", "-S"]).arg(script).args(rules);
    Some(program.arg("--").arg(buildlock_path()))
}

/// Returns a rule for an `openat` that asks for a file without a name.
pub fn opening_nameless(error: &str) -> String {
    // Only this bit is O_TMPFILE's own.
    opening(error, OFlags::TMPFILE - OFlags::DIRECTORY)
}

/// Returns a rule for an `openat` of a lock file that may exist.
pub fn opening_lock_file(error: &str) -> String {
    opening(error, OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY)
}

fn opening(error: &str, flags: OFlags) -> String {
    format!("openat:{error}:0:2:{0:o}:{0:o}", flags.bits())
}
