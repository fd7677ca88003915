//! Signals: how the build command ends, how its leftovers are ended, and what must not change.
//! `signal_matrix.rs` says which signal does what in which phase.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{
    Fixture, Gate, Invocation, Namespace, OTHER_USER, Recorder, Running, Terminal, as_other_user,
    build_that_sees_overlap, buildlock_path, has, holders, install_polite, install_stubborn,
    is_alive, is_free, is_in, is_root, number, open_to_everybody, python, send_signal, signal_mask,
    skip, state, waiters,
};

const TAG: &str = "env:abc";
const BUILD: [&str; 8] = ["-t", TAG, "--", "docker", "build", "-t", TAG, "."];

/// Prepares `buildlock -t env:abc OPTIONS -- WORDS`.
fn command<'f>(f: &'f Fixture, options: &[&str], words: &[OsString]) -> Invocation<'f> {
    f.buildlock(["-t", TAG]).args(options).arg("--").args(words)
}

/// Returns the same as words, for other programs that start it.
fn command_words(options: &[&str], words: &[OsString]) -> Vec<OsString> {
    let program = buildlock_path().into_os_string();
    let options = ["-t", TAG].iter().chain(options).chain(&["--"]).map(OsString::from);
    std::iter::once(program).chain(options).chain(words.iter().cloned()).collect()
}

fn shell(script: &str) -> Vec<OsString> {
    ["sh", "-c", script].map(OsString::from).to_vec()
}

/// Prepares a call that starts with these signals ignored.
fn ignoring<'f>(f: &'f Fixture, signals: &str, words: &[OsString]) -> Invocation<'f> {
    let script = format!("trap '' {signals}; exec \"$@\"");
    f.program("sh").args(["-c", &script, "sh"]).args(words)
}

// While waiting.

#[test]
fn waiting_goes_on_after_a_hangup_that_nohup_ignores() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let held = f.hold_lock(&lock);
    let waiter = f.program("nohup").arg(buildlock_path()).args(BUILD).start();
    f.wait_for_waiters(&lock, 1);
    waiter.signal("HUP");
    drop(held);
    waiter.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn client_that_was_asked_does_not_outlive_buildlock() {
    for signal in ["KILL", "TERM"] {
        let f = Fixture::new();
        let _closed = Gate::new(&f, "look.gate");
        let looking = f.buildlock(BUILD).start();
        let client = f.wait_for_pid("held.log");
        looking.signal(signal);
        looking.wait().assert_signal(number(signal));
        f.wait_for_death(client);
    }
}

// While building.

#[test]
fn forced_build_that_was_signalled_and_ends_with_0_is_not_believed() {
    for signal in ["TERM", "INT", "HUP"] {
        let f = Fixture::new();
        f.make_image(TAG);
        let Some(recorder) = Recorder::new(&f) else { return };
        let build = command(&f, &["--force"], &recorder.words()).start();
        recorder.wait_until_ready();
        build.signal(signal);
        recorder.wait_for(signal);
        recorder.end(0);
        let build = build.wait();
        assert!(!build.status.success(), "{signal}: {build}");
        build.assert_no_stderr(": built");
    }
}

#[test]
fn forced_build_that_nobody_signalled_is_believed() {
    let f = Fixture::new();
    f.make_image(TAG);
    let Some(recorder) = Recorder::new(&f) else { return };
    let build = command(&f, &["--force"], &recorder.words()).start();
    recorder.wait_until_ready();
    // This signal does not terminate.
    build.signal("WINCH");
    recorder.wait_for("WINCH");
    recorder.end(0);
    build.wait().assert_code(0);
}

#[test]
fn buildlock_ends_by_the_signal_that_ended_the_build_command() {
    for signal in ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"] {
        let f = Fixture::new();
        let _gate = Gate::new(&f, "never");
        let script = "ulimit -c 0; echo $$ >\"$STANDIN/pid\"; read _ <\"$STANDIN/never\"";
        let build = command(&f, &[], &shell(script)).start();
        f.wait_for_pid("pid");
        build.signal(signal);
        build.wait().assert_signal(number(signal));
        assert!(is_free(&f.lock_file(TAG)));
    }
}

#[test]
fn buildlock_ends_by_the_signal_that_the_build_command_sent_itself() {
    for signal in ["KILL", "SEGV", "ABRT", "PIPE", "ALRM"] {
        let f = Fixture::new();
        let script = format!("ulimit -c 0; kill -s {signal} $$");
        command(&f, &[], &shell(&script)).run().assert_signal(number(signal));
    }
}

#[test]
fn buildlock_leaves_no_core_file() {
    let f = Fixture::new();
    // The build command forbids its own core file, so any that is found is buildlock's.
    let script = "ulimit -c 0; kill -s QUIT $$";
    let words = command_words(&[], &shell(script));
    let raise = "ulimit -c unlimited 2>/dev/null; exec \"$@\"";
    let build = f.program("sh").args(["-c", raise, "sh"]).args(words).run();
    build.assert_signal(number("QUIT"));
    let left: Vec<_> = fs::read_dir(f.work_dir()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn signals_that_are_ignored_by_default_do_not_end_a_waiting_or_building_buildlock() {
    let f = Fixture::new();
    let Some(recorder) = Recorder::new(&f) else { return };
    let held = f.hold_lock(&f.lock_file(TAG));
    let build = command(&f, &[], &recorder.words()).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    build.signal("WINCH");
    build.signal("CHLD");
    build.signal("URG");
    build.signal("CONT");
    drop(held);
    recorder.wait_until_ready();
    build.signal("CHLD");
    build.signal("CONT");
    recorder.end(4);
    build.wait().assert_code(4);
}

// From the terminal.

/// Returns the buildlock that holds the lock. The build command's parent may be its keeper.
fn parent_of(command: u32, f: &Fixture) -> u32 {
    assert!(is_alive(command), "{}", f.scene());
    holders(&f.lock_file(TAG))[0]
}

#[test]
fn second_ctrl_c_reaches_the_build_command_too() {
    let f = Fixture::new();
    let Some(recorder) = Recorder::new(&f) else { return };
    let words = command_words(&[], &recorder.words());
    let Some(terminal) = Terminal::start(&f, &words) else { return };
    let command = recorder.wait_until_ready();
    for n in 1..=3 {
        terminal.press("\x03");
        f.wait_for("another INT at the build command", || recorder.count("INT") >= n);
    }
    send_signal(parent_of(command, &f), "USR1");
    recorder.wait_for("USR1");
    assert_eq!(recorder.count("INT"), 3);
    recorder.end(6);
    assert_eq!(terminal.end(), "code 6");
}

#[test]
fn ctrl_c_ends_a_plain_build_command_and_buildlock_by_that_signal() {
    let f = Fixture::new();
    let _never = Gate::new(&f, "never");
    let script = "echo $$ >\"$STANDIN/pid\"; read _ <\"$STANDIN/never\"";
    let Some(terminal) = Terminal::start(&f, &command_words(&[], &shell(script))) else { return };
    f.wait_for_pid("pid");
    terminal.press("\x03");
    assert_eq!(terminal.end(), format!("signal {}", number("INT")), "{}", f.scene());
    assert!(is_free(&f.lock_file(TAG)));
}

#[test]
fn remains_after_ctrl_c_are_ended_before_the_lock_is_released() {
    let f = Fixture::new();
    let _never = Gate::new(&f, "never");
    let _gate = install_polite(&f);
    // In a session of its own, which the terminal's signal does not reach.
    let script = "setsid polite & read _ <\"$STANDIN/never\"";
    let Some(terminal) = Terminal::start(&f, &command_words(&[], &shell(script))) else { return };
    let polite = f.wait_for_pid("polite.pid");
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    terminal.press("\x03");
    assert_eq!(terminal.end(), format!("signal {}", number("INT")), "{}", f.scene());
    assert!(!is_alive(polite), "{}", f.scene());
    second.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new());
}

/// Runs a bash loop around buildlock on a terminal. One Ctrl-C must end the loop.
fn assert_ctrl_c_stops_a_loop(f: &Fixture, wait: impl Fn()) {
    if !has("bash") {
        return;
    }
    let never = "echo $$ >\"$STANDIN/pid\"; read _ <\"$STANDIN/never\"";
    let loop_ = "for n in 1 2 3; do echo $n >>\"$STANDIN/rounds\"; \
        \"$0\" -t env:abc -- sh -c \"$1\"; done; echo end >>\"$STANDIN/rounds\"";
    let mut words = ["bash", "-c", loop_].map(OsString::from).to_vec();
    words.extend([buildlock_path().into_os_string(), never.into()]);
    let Some(terminal) = Terminal::start(f, &words) else { return };
    wait();
    terminal.press("\x03");
    assert_eq!(terminal.end(), format!("signal {}", number("INT")), "{}", f.scene());
    assert_eq!(f.lines("rounds"), ["1"]);
}

#[test]
fn ctrl_c_while_building_stops_a_shell_loop() {
    let f = Fixture::new();
    let _never = Gate::new(&f, "never");
    assert_ctrl_c_stops_a_loop(&f, || _ = f.wait_for_pid("pid"));
}

#[test]
fn ctrl_c_while_waiting_stops_a_shell_loop() {
    let f = Fixture::new();
    let _never = Gate::new(&f, "never");
    let lock = f.lock_file(TAG);
    let _held = f.hold_lock(&lock);
    assert_ctrl_c_stops_a_loop(&f, || f.wait_for_waiters(&lock, 1));
}

#[test]
fn ctrl_c_while_building_stops_make() {
    if !has("make") {
        return;
    }
    let f = Fixture::new();
    let _never = Gate::new(&f, "never");
    let makefile = "all: one two\none:\n\t-\"$(PROGRAM)\" -t env:abc -- sh -c \
        'echo $$$$ >\"$$STANDIN/pid\"; read _ <\"$$STANDIN/never\"'\n\
        two:\n\techo two >\"$$STANDIN/two\"\n";
    fs::write(f.work_dir().join("Makefile"), makefile).unwrap();
    let mut program = OsString::from("PROGRAM=");
    program.push(buildlock_path());
    let words = [OsString::from("make"), program];
    let Some(terminal) = Terminal::start(&f, &words) else { return };
    f.wait_for_pid("pid");
    terminal.press("\x03");
    let end = terminal.end();
    assert!(end == "signal 2" || end == "code 2", "{end}\n{}", f.scene());
    assert!(!f.path("two").exists(), "{}", f.scene());
}

#[test]
fn stopped_build_keeps_the_lock_and_goes_on_when_it_is_continued() {
    if !has("bash") {
        return;
    }
    let f = Fixture::new();
    let gate = Gate::new(&f, "go");
    let resume = Gate::new(&f, "resume");
    let script = "echo $$ >\"$STANDIN/pid\"; read _ <\"$STANDIN/go\"; docker build -t env:abc .";
    // With job control, as at a prompt.
    let jobs = "set -m; \"$0\" -t env:abc -- sh -c \"$1\"; echo $? >\"$STANDIN/stopped\"; \
        read _ <\"$STANDIN/resume\"; fg; exit $?";
    let mut words = ["bash", "-c", jobs].map(OsString::from).to_vec();
    words.extend([buildlock_path().into_os_string(), script.into()]);
    let Some(terminal) = Terminal::start(&f, &words) else { return };
    let child = f.wait_for_pid("pid");
    let lock = f.lock_file(TAG);
    let buildlock = holders(&lock)[0];
    terminal.press("\x1a");
    assert_eq!(f.wait_for_file("stopped"), format!("{}\n", 128 + number("TSTP")));
    for pid in [child, buildlock] {
        f.wait_for("both to be stopped", || state(pid) == 'T');
    }
    assert_eq!(holders(&lock), [buildlock], "{}", f.scene());
    f.buildlock(["-w", "0s"]).args(BUILD).run().assert_code(124);
    gate.open();
    resume.open();
    assert_eq!(terminal.end(), "code 0", "{}", f.scene());
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn build_command_may_read_from_the_terminal() {
    let f = Fixture::new();
    let script = "read line; echo \"got $line\" >\"$STANDIN/got\"; docker build -t env:abc .";
    let Some(terminal) = Terminal::start(&f, &command_words(&[], &shell(script))) else { return };
    terminal.press("hello\n");
    assert_eq!(terminal.end(), "code 0", "{}", f.scene());
    assert_eq!(f.lines("got"), ["got hello"]);
}

// Whole groups.

#[test]
fn signal_to_the_whole_group_ends_everything_and_frees_the_lock() {
    let f = Fixture::new();
    let _gate = install_polite(&f);
    let mut build = command(&f, &[], &shell("polite & wait"));
    build.command().process_group(0);
    let build = build.start();
    let polite = f.wait_for_pid("polite.pid");
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    let group = nix::unistd::Pid::from_raw(build.pid().try_into().unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM).unwrap();
    build.wait().assert_signal(number("TERM"));
    assert!(!is_alive(polite));
    second.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new());
}

#[test]
fn client_that_outlives_its_shell_is_ended_before_the_lock_is_released() {
    let f = Fixture::new();
    // A client that takes a while to cancel its build, and notes when it is done.
    let gate = Gate::new(&f, "cancel");
    f.install_script(
        "client",
        r#"#!/bin/sh
exec 8>>"$STANDIN/alive"
flock 8
cancel() {
    echo cancelling >"$STANDIN/client.term"
    read _ <"$STANDIN/cancel"
    echo cancelled >>"$STANDIN/client.term"
    exit 1
}
trap cancel TERM
echo $$ >"$STANDIN/client.pid"
while :; do sleep 300 8>&- & wait $!; done
"#,
    );
    let build = command(&f, &["--kill-after", "25s"], &shell("client; echo never")).start();
    let client = f.wait_for_pid("client.pid");
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    build.signal("TERM");
    f.wait_for_file("client.term");
    // The shell is gone, but its client is not: the lock must stay.
    assert!(is_alive(client));
    assert_eq!(holders(&f.lock_file(TAG)), [build.pid()], "{}", f.scene());
    gate.open();
    build.wait().assert_signal(number("TERM")).assert_stdout("");
    assert_eq!(f.lines("client.term"), ["cancelling", "cancelled"]);
    assert!(!is_alive(client));
    second.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new());
}

#[test]
fn second_signal_while_the_rest_is_ended_does_not_free_the_lock_early() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let build = command(&f, &["--kill-after", "2s"], &shell("stubborn & wait")).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    let shell = parent(stubborn);
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    build.signal("TERM");
    f.wait_for("the build command to go", || parent(stubborn) != shell);
    build.signal("TERM");
    build.signal("INT");
    build.wait();
    assert!(!is_alive(stubborn), "{}", f.scene());
    second.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new());
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

// What must not change.

/// Returns the build command's `/proc/self/status` behind this wrapper, with buildlock and without.
fn statuses(f: &Fixture, wrap: &dyn Fn(&[OsString]) -> Vec<OsString>) -> [String; 2] {
    // cat is not run by a shell, which could change something.
    let cat = ["cat", "/proc/self/status"].map(OsString::from);
    f.make_image(TAG);
    [command_words(&["--force"], &cat), cat.to_vec()].map(|words| {
        let words = wrap(&words);
        let done = f.program(&words[0]).args(&words[1..]).run();
        done.assert_code(0);
        String::from_utf8(done.stdout).unwrap()
    })
}

/// Puts a Python in front that first does `what`.
fn behind_python(python: &str, what: &str, words: &[OsString]) -> Vec<OsString> {
    // Python itself ignores SIGPIPE.
    let script = format!(
        "import os, signal, sys\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\n{what}\n\
         os.execvp(sys.argv[1], sys.argv[1:])"
    );
    let start = [python, "-I", "-S", "-c", &script].map(OsString::from);
    start.into_iter().chain(words.iter().cloned()).collect()
}

#[test]
fn build_command_ignores_the_signals_that_buildlock_was_started_ignoring() {
    let Some(python) = python() else { return };
    for names in ["", "PIPE", "HUP", "INT QUIT", "TERM", "USR1 USR2 WINCH", "TSTP TTIN TTOU"] {
        let f = Fixture::new();
        let ignore: String = names
            .split_whitespace()
            .map(|name| format!("signal.signal(signal.SIG{name}, signal.SIG_IGN)\n"))
            .collect();
        let [with, without] = statuses(&f, &|words| behind_python(python, &ignore, words));
        for name in names.split_whitespace() {
            assert!(is_in(signal_mask(&without, "SigIgn"), name), "{without}");
        }
        assert_eq!(signal_mask(&with, "SigIgn"), signal_mask(&without, "SigIgn"), "{names:?}");
        assert_eq!(signal_mask(&with, "SigBlk"), signal_mask(&without, "SigBlk"), "{names:?}");
    }
}

#[test]
fn build_command_has_the_signal_mask_that_buildlock_was_started_with() {
    let Some(python) = python() else { return };
    for names in ["", "USR1", "TERM HUP", "CHLD", "INT QUIT WINCH RTMIN"] {
        let f = Fixture::new();
        let set: Vec<_> = names.split_whitespace().map(|n| format!("signal.SIG{n}")).collect();
        let what = format!("signal.pthread_sigmask(signal.SIG_BLOCK, [{}])", set.join(", "));
        let [with, without] = statuses(&f, &|words| behind_python(python, &what, words));
        assert_eq!(signal_mask(&without, "SigBlk").count_ones() as usize, set.len(), "{without}");
        assert_eq!(signal_mask(&with, "SigBlk"), signal_mask(&without, "SigBlk"), "{names:?}");
        assert_eq!(signal_mask(&with, "SigIgn"), signal_mask(&without, "SigIgn"), "{names:?}");
    }
}

#[test]
fn ignored_sigchld_does_not_hide_the_exit_status() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    let ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)";
    for (script, code) in [("exit 7", 7), ("docker build -t env:abc .", 0)] {
        let words = behind_python(python, ignore, &command_words(&[], &shell(script)));
        f.program(&words[0]).args(&words[1..]).run().assert_code(code);
    }
}

#[test]
fn blocked_signals_do_not_hide_the_end_of_the_build_command() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    let block = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())";
    let words = behind_python(python, block, &command_words(&[], &shell("exit 7")));
    f.program(&words[0]).args(&words[1..]).run().assert_code(7);
}

#[test]
fn forced_build_is_believed_after_a_hangup_that_was_ignored() {
    let f = Fixture::new();
    f.make_image(TAG);
    let Some(recorder) = Recorder::new(&f) else { return };
    let words = command_words(&["--force"], &recorder.words());
    let build = ignoring(&f, "HUP", &words).start();
    recorder.wait_until_ready();
    build.signal("HUP");
    build.signal("USR1");
    recorder.wait_for("USR1");
    recorder.end(0);
    build.wait().assert_code(0);
}

// Processes that may not be signalled.

/// Installs a program that becomes root for every user, so that another user's signals fail. What
/// it runs writes its pid to `bounces.pid`.
fn install_setuid(f: &Fixture) -> bool {
    let program = f.path("bin/become-root");
    // Another process writes it, as in write_executable().
    let original = which::which("setpriv").unwrap();
    let install = Command::new("install").args(["-m", "4755"]).arg(original).arg(&program).status();
    assert!(install.unwrap().success(), "install {program:?}");
    f.install_script(
        "bounces",
        "#!/bin/sh\nexec become-root --reuid 0 --clear-groups sh -c \
         'echo $$ >\"$0\"; read _ <\"$1\"' \"$STANDIN/bounces.pid\" \"$STANDIN/bounces.gate\"\n",
    );
    // The file system may forbid it.
    let tried = as_other_user(f, Path::new("become-root")).args(["--reuid", "0", "id", "-u"]).run();
    let may = tried.stdout == b"0\n";
    if !may {
        skip("needs setuid programs");
    }
    may
}

#[test]
fn signal_that_may_not_be_passed_on_is_reported() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    if !install_setuid(&f) {
        return;
    }
    let gate = Gate::new(&f, "bounces.gate");
    let build = as_other_user(&f, &program).args(["-t", TAG, "--", "bounces"]).start();
    let child = f.wait_for_pid("bounces.pid");
    build.signal("USR1");
    build.wait_for_stderr("SIGUSR1");
    build.wait_for_stderr("ermi");
    assert!(is_alive(child) && !is_free(&f.lock_file(TAG)), "{}", f.scene());
    gate.open();
    // The build command ended with 0 and made no image.
    build.wait().assert_code(125);
}

#[test]
fn process_that_cannot_be_ended_keeps_the_lock_and_is_reported() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    if !install_setuid(&f) {
        return;
    }
    let gate = Gate::new(&f, "bounces.gate");
    let lock = f.lock_file(TAG);
    let options = ["-t", TAG, "--kill-after", "500ms", "--", "sh", "-c", "bounces & wait"];
    let build: Running = as_other_user(&f, &program).args(options).start();
    let child = f.wait_for_pid("bounces.pid");
    let second = f.program(&program).args(BUILD).start();
    f.wait_for_waiters(&lock, 1);
    build.signal("TERM");
    let build = build.wait();
    build.assert_signal(number("TERM")).assert_stderr(&child.to_string());
    assert!(is_alive(child), "{}", f.scene());
    assert_eq!(waiters(&lock), [second.pid()], "{}", f.scene());
    assert!(!is_free(&lock));
    gate.open();
    second.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

/// There, a process that executes a setuid program vanishes from the caller's sight.
#[test]
fn process_that_proc_hides_keeps_the_lock_after_a_failure() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    if !install_setuid(&f) {
        return;
    }
    let Some(there) = Namespace::new(&f, "mount -t proc -o hidepid=2 proc /proc") else { return };
    fs::remove_dir(f.lock_dir()).unwrap();
    let gate = Gate::new(&f, "bounces.gate");
    let lock = f.lock_file(TAG);
    let id = OTHER_USER.to_string();
    let drop = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
    let script = "bounces & while [ ! -s \"$STANDIN/bounces.pid\" ]; do sleep 0.05; done; exit 3";
    let build = there.program("setpriv").args(drop).arg(&program);
    let build = build.args(["-k", "300ms", "-t", TAG, "--", "sh", "-c", script]).run();
    build.assert_code(3).assert_stderr("stays held");
    let child = f.wait_for_pid("bounces.pid");
    build.assert_stderr(&child.to_string());
    assert!(is_alive(child) && !is_free(&lock), "{build}\n{}", f.scene());
    gate.open();
    f.wait_for("the lock", || is_free(&lock));
}

#[test]
fn stopped_build_command_is_still_ended() {
    for signal in ["TERM", "INT", "HUP"] {
        let f = Fixture::new();
        let script = "echo $$ >\"$STANDIN/began\"; exec sleep 600";
        let build = command(&f, &[], &shell(script)).start();
        let sleep = f.wait_for_pid("began");
        f.wait_for("sleep", || fs::read(format!("/proc/{sleep}/comm")).unwrap() == b"sleep\n");
        send_signal(sleep, "STOP");
        f.wait_for("it to stop", || state(sleep) == 'T');
        build.signal(signal);
        build.wait().assert_signal(number(signal));
        assert!(!is_alive(sleep));
    }
}

#[test]
fn stopped_keeper_is_continued_when_it_is_needed() {
    let f = Fixture::new();
    f.hold_builds();
    for (limits, code) in [(&[][..], 0), (&["-k", "100ms", "--build-timeout", "100ms"], 124)] {
        let build = f.buildlock(limits).args(BUILD).start();
        f.wait_for_builds(1);
        let client = f.build_events()[0].pid;
        let keeper = parent(client).unwrap();
        send_signal(keeper, "STOP");
        f.wait_for("the keeper to stop", || state(keeper) == 'T');
        if limits.is_empty() {
            f.let_builds_go(1);
        }
        build.wait().assert_code(code);
        assert!(is_free(&f.lock_file(TAG)));
        fs::remove_file(f.path("builds.log")).unwrap();
        fs::remove_file(f.path("images").join(TAG)).ok();
    }
}

#[test]
fn process_1_of_a_container_can_be_interrupted_while_it_waits() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    let _held = f.hold_lock(&f.lock_file("env:abc"));
    let unshared = f.program("unshare").args(["--fork", "--pid", "--mount-proc"]);
    let command = ["-w", "none", "-t", "env:abc", "--", "true"];
    let call = unshared.arg(buildlock_path()).args(command).start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    let children = format!("/proc/{0}/task/{0}/children", call.pid());
    let first: u32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    send_signal(first, "TERM");
    // unshare(1) passes on an exit status rather than a signal.
    call.wait().assert_code(143);
}

#[test]
fn real_time_signal_that_ended_the_build_command_ends_buildlock_too() {
    let f = Fixture::new();
    f.buildlock(["-t", "env:abc", "--", "sh", "-c", "kill -40 $$"]).run().assert_signal(40);
}
