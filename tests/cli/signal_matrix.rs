//! Every signal in every phase, sent in every possible way.
//!
//! [`TABLE`] says what must happen, and [`Way`] what the way of sending adds to that. One test
//! tries all cells and names those that fail. To try only some of them:
//! `SIGNAL_CELLS=Building,Typed cargo test --test cli signal_matrix`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use Phase::{Building, Looking, LookingAgain, LookingByClient, Verifying, Waiting};
use Then::{Ends, Nothing, Reaches, Stops};
use Way::{Alone, Group, Ignored, Twice, Typed};

use crate::support::fake_engine::{FakeEngine, found, missing, send};
use crate::support::{
    Fixture, ForeignLock, Gate, Recorder, Running, Terminal, build_that_sees_overlap,
    buildlock_path, has, install_stubborn, is_free, number, python, send_signal, state, waiters,
};

const TAG: &str = "env:abc";

/// Where buildlock is when the signal comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first look, over the engine's socket.
    Looking,
    /// The first look, through the engine's client.
    LookingByClient,
    /// The wait for the lock.
    Waiting,
    /// The second look, with the lock.
    LookingAgain,
    Building,
    /// The last look, after the build command has ended with 0.
    Verifying,
}

/// What a signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// buildlock ends by it, at once.
    Ends,
    /// The build command gets it, and its end decides.
    Reaches,
    Nothing,
    /// buildlock stops, keeps its lock, and goes on when it is continued.
    Stops,
}

/// How a signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To buildlock alone, as `kill` or a supervisor does. The build command gets it from
    /// buildlock, which also stops and continues it.
    Alone,
    /// The same, and once more as soon as the first one has had its effect.
    Twice,
    /// To the whole group, as `timeout` does. The build command gets it directly and from
    /// buildlock, but may see it once, since two pending signals merge. It is stopped and continued
    /// with buildlock.
    Group,
    /// By the terminal: Ctrl-C, Ctrl-\, a resize, a hang-up; Ctrl-Z and `fg`. The build command
    /// gets it once, and is stopped and continued with buildlock.
    Typed,
    /// To a buildlock that was started with the signal ignored, as `nohup` does. It has no effect,
    /// whatever the table says.
    Ignored,
}

const PHASES: [Phase; 6] = [Looking, LookingByClient, Waiting, LookingAgain, Building, Verifying];
const WAYS: [Way; 5] = [Alone, Twice, Group, Typed, Ignored];

#[rustfmt::skip]
const TABLE: [(&str, [Then; PHASES.len()]); 19] = [
    //         looking  by client  waiting  again    building verifying
    ("INT",   [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("TERM",  [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("HUP",   [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("QUIT",  [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("USR1",  [Ends,    Ends,      Ends,    Ends,    Reaches, Nothing]),
    ("USR2",  [Ends,    Ends,      Ends,    Ends,    Reaches, Nothing]),
    ("WINCH", [Nothing, Nothing,   Nothing, Nothing, Reaches, Nothing]),
    ("TSTP",  [Stops,   Stops,     Stops,   Stops,   Stops,   Stops]),
    ("TTIN",  [Stops,   Stops,     Stops,   Stops,   Stops,   Stops]),
    ("TTOU",  [Stops,   Stops,     Stops,   Stops,   Stops,   Stops]),
    ("CONT",  [Nothing, Nothing,   Nothing, Nothing, Reaches, Nothing]),
    ("ALRM",  [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("VTALRM",[Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("PROF",  [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("XCPU",  [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("SYS",   [Ends,    Ends,      Ends,    Ends,    Reaches, Ends]),
    ("PWR",   [Ends,    Ends,      Ends,    Ends,    Reaches, Nothing]),
    ("IO",    [Ends,    Ends,      Ends,    Ends,    Reaches, Nothing]),
    ("RTMIN", [Ends,    Ends,      Ends,    Ends,    Reaches, Nothing]),
];

/// The signals that a terminal sends.
const TYPED: [&str; 5] = ["INT", "QUIT", "WINCH", "HUP", "TSTP"];

#[derive(Clone, Copy, Debug)]
struct Cell {
    signal: &'static str,
    phase: Phase,
    way: Way,
    then: Then,
}

fn cells() -> Vec<Cell> {
    let job_control = has("bash");
    let mut cells = Vec::new();
    for (signal, row) in TABLE {
        for way in WAYS {
            let can_be_typed = TYPED.contains(&signal) && (signal != "TSTP" || job_control);
            if way == Typed && !can_be_typed {
                continue;
            }
            for (phase, then) in PHASES.into_iter().zip(row) {
                let then = if way == Ignored { Nothing } else { then };
                cells.push(Cell { signal, phase, way, then });
            }
        }
    }
    let wanted = std::env::var("SIGNAL_CELLS").unwrap_or_default();
    cells.retain(|cell| wanted.split(',').all(|word| format!("{cell:?}").contains(word)));
    cells
}

#[test]
fn every_signal_does_in_every_phase_what_the_table_says() {
    if python().is_none() {
        return;
    }
    let cells = cells();
    assert!(!cells.is_empty(), "SIGNAL_CELLS names none");
    let todo = Mutex::new(cells.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        // More than there are processors, since the cells mostly wait.
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some(cell) = todo.lock().unwrap().next() else { return };
                    if let Err(why) = catch_unwind(AssertUnwindSafe(|| cell.try_out())) {
                        let why = why.downcast::<String>().unwrap_or_default();
                        failed.lock().unwrap().push(format!("{cell:?}\n{why}\n"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let names = failed.iter().filter_map(|text| text.lines().next()).collect::<Vec<_>>().join("\n");
    let (count, all) = (failed.len(), cells.len());
    assert!(failed.is_empty(), "{}\n{count} of {all} cells failed:\n{names}", failed.concat());
}

impl Cell {
    fn try_out(self) {
        let Self { phase, then, way, .. } = self;
        let f = Fixture::new();
        let lock = f.lock_file(TAG);
        let recorder = (phase == Building).then(|| Recorder::new(&f).unwrap());
        let foreign = (phase == Waiting).then(|| f.hold_lock(&lock));
        let mut look = Look::hold(&f, phase);
        let command = recorder.as_ref().map_or_else(command_that_builds, Recorder::words);
        let call = Call::start(&f, self, look.environment(), &command);
        let pid = f.wait_for_pid("buildlock.pid");
        match &recorder {
            Some(recorder) => _ = recorder.wait_until_ready(),
            None if phase == Waiting => f.wait_for("the waiter", || waiters(&lock) == [pid]),
            None => look.wait_until_held(&f),
        }

        let scene = Scene { f: &f, cell: self, call: &call, pid, recorder: recorder.as_ref() };
        match then {
            Ends => scene.send(),
            Reaches => scene.reaches_command(),
            Nothing => scene.does_nothing(),
            Stops => scene.stops_and_goes_on(),
        }
        let expected = match (then, way) {
            (Ends, _) => format!("signal {}", number(self.signal)),
            // The build command decides what it does then: it fails, ends with 0 without an image,
            // or succeeds.
            (Reaches, Alone) => scene.let_command_end(5, false),
            (Reaches, Twice) => scene.let_command_end(0, false),
            _ => scene.let_command_end(0, true),
        };
        // What buildlock waits for comes only if the signal must not end it.
        let held = (then == Ends).then_some(foreign);
        if then != Ends {
            look.let_go();
        }
        let ended = call.end();
        assert_eq!(ended, expected, "{}", f.scene());
        drop(held);

        assert!(ended != "code 0" || f.has_image(TAG), "{ended}, but no image");
        let runs = usize::from(then != Ends || phase == Verifying);
        assert_eq!(f.lines("runs").len(), if phase == Building { 0 } else { runs }, "runs");
        assert!(!lock.exists() || is_free(&lock), "the lock is held\n{}", f.scene());
        // The client of the look-up ends once it has its answer.
        look.let_go();
        if (phase, then) == (LookingByClient, Ends) {
            f.wait_for("the client to end", || f.processes().is_empty());
        }
        assert_eq!(f.processes(), [] as [u32; 0], "{}", f.scene());
        let left: Vec<_> = fs::read_dir(f.work_dir()).unwrap().flatten().collect();
        // The client may have left a core file: it got the signal, too.
        let by_client = phase == LookingByClient && matches!(way, Group | Typed);
        assert!(left.is_empty() || by_client, "a core file? {left:?}");
    }
}

/// A call in the phase of its cell.
struct Scene<'a> {
    f: &'a Fixture,
    cell: Cell,
    call: &'a Call<'a>,
    /// The pid of buildlock.
    pid: u32,
    recorder: Option<&'a Recorder<'a>>,
}

impl Scene<'_> {
    fn send(&self) {
        self.send_once();
        if self.cell.way == Twice {
            self.send_once();
        }
    }

    fn send_once(&self) {
        let signal = self.cell.signal;
        match (self.cell.way, self.call) {
            (Alone | Twice | Ignored, _) => send_signal(self.pid, signal),
            (Group, _) => send_to_group(self.pid, signal),
            (Typed, Call::OnTerminal { terminal, .. }) => match signal {
                "INT" => terminal.press("\x03"),
                "QUIT" => terminal.press("\x1c"),
                "TSTP" => terminal.press("\x1a"),
                "WINCH" => terminal.resize(50, 132),
                "HUP" => terminal.hang_up(),
                _ => unreachable!("no terminal sends {signal}"),
            },
            (Typed, _) => unreachable!("there is no terminal"),
        }
    }

    fn reaches_command(&self) {
        let signal = self.cell.signal;
        let recorder = self.recorder.unwrap();
        self.send_once();
        recorder.wait_for(signal);
        if self.cell.way == Twice {
            self.send_once();
            self.f.wait_for("the second at the build command", || recorder.count(signal) == 2);
        }
        self.assert_arrived(match self.cell.way {
            Alone | Typed => &[1],
            Twice => &[2],
            Group => &[1, 2],
            Ignored => &[0],
        });
    }

    /// Fails unless the signal arrived this many times.
    ///
    /// A later signal is sent, too. Once it has arrived, so has every earlier one.
    fn assert_arrived(&self, counts: &[usize]) {
        let signal = self.cell.signal;
        let Some(recorder) = self.recorder else { return };
        let later = if signal == "USR1" { "USR2" } else { "USR1" };
        for n in 1..=2 {
            send_signal(self.pid, later);
            self.f.wait_for("a later one at the build command", || recorder.count(later) == n);
        }
        let count = recorder.count(signal);
        assert!(
            counts.contains(&count),
            "the build command got {count} {signal}\n{}",
            self.f.scene()
        );
    }

    fn does_nothing(&self) {
        self.send();
        self.assert_arrived(&[0]);
        match self.cell.phase {
            Waiting => {
                let lock = self.f.lock_file(TAG);
                self.f.wait_for("it to wait still", || waiters(&lock) == [self.pid]);
            }
            Looking | LookingByClient => {}
            LookingAgain | Building | Verifying => self.assert_locked(),
        }
    }

    fn stops_and_goes_on(&self) {
        let rounds = if self.cell.way == Twice { 2 } else { 1 };
        let command = self.recorder.map(Recorder::wait_until_ready);
        for _ in 0..rounds {
            self.send_once();
            self.f.wait_for("buildlock to stop", || state(self.pid) == 'T');
            if let Some(command) = command {
                self.f.wait_for("the build command to stop", || state(command) == 'T');
            }
            if matches!(self.cell.phase, LookingAgain | Building | Verifying) {
                self.assert_locked();
            }
            match (self.cell.way, self.call) {
                (Typed, Call::OnTerminal { foreground, .. }) => {
                    // The shell has noticed the stop.
                    self.f.wait_for_file("stopped");
                    foreground.open();
                }
                (Group, _) => send_to_group(self.pid, "CONT"),
                _ => send_signal(self.pid, "CONT"),
            }
            for pid in [Some(self.pid), command].into_iter().flatten() {
                self.f.wait_for("all to go on", || state(pid) != 'T');
            }
        }
        self.assert_arrived(&[0]);
    }

    #[track_caller]
    fn assert_locked(&self) {
        // Tried, since the kernel's list may miss a line while other locks come and go.
        assert!(!is_free(&self.f.lock_file(TAG)), "the lock is free\n{}", self.f.scene());
    }

    /// Lets the build command end, if the test controls it. Returns how buildlock must end.
    fn let_command_end(&self, status: u8, builds: bool) -> String {
        if let Some(recorder) = self.recorder {
            if builds {
                self.f.make_image(TAG);
            }
            recorder.end(status);
        }
        match (status, builds) {
            (0, false) => "code 125".to_owned(),
            _ => format!("code {status}"),
        }
    }
}

fn send_to_group(leader: u32, signal: &str) {
    let group = format!("-{leader}");
    let kill = Command::new("kill").args(["-s", signal, "--", &group]).status();
    assert!(kill.unwrap().success(), "kill -s {signal} -- {group}");
}

/// Returns a build command that makes the image and notes that it ran.
fn command_that_builds() -> Vec<OsString> {
    let script = "echo run >>\"$STANDIN/runs\"; echo linux/amd64 >\"$STANDIN/images/env:abc\"";
    ["sh", "-c", script].map(OsString::from).to_vec()
}

/// An engine that holds back its answer to one look-up until it is let go.
enum Look {
    OverSocket { engine: FakeEngine, held: Option<usize>, answer: Option<Sender<()>> },
    ByClient(Gate),
}

impl Look {
    fn hold(f: &Fixture, phase: Phase) -> Self {
        if phase == LookingByClient {
            return Look::ByClient(Gate::new(f, "look.gate"));
        }
        // A binary: with a script, the look-up would go through the script.
        fs::remove_file(f.path("bin/docker")).unwrap();
        symlink(buildlock_path(), f.path("bin/docker")).unwrap();
        let held = match phase {
            Looking => Some(0),
            LookingAgain => Some(1),
            Verifying => Some(2),
            LookingByClient | Waiting | Building => None,
        };
        let (answer, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let image = f.path("images").join(TAG);
        let engine = FakeEngine::start(&f.path("docker.sock"), move |number, _, stream| {
            if held == Some(number) {
                // Waits until the other side is dropped.
                let _ = wait.lock().unwrap().recv();
            }
            send(stream, if image.exists() { found() } else { missing(TAG) });
        });
        Look::OverSocket { engine, held, answer: Some(answer) }
    }

    fn environment(&self) -> OsString {
        match self {
            Look::OverSocket { engine, .. } => format!("DOCKER_HOST={}", engine.endpoint()).into(),
            Look::ByClient(_) => "DOCKER_HOST=".into(),
        }
    }

    fn wait_until_held(&self, f: &Fixture) {
        f.wait_for("the look-up", || match self {
            Look::OverSocket { engine, held, .. } => engine.heads().len() == held.unwrap() + 1,
            Look::ByClient(_) => f.path("held.log").exists(),
        });
    }

    fn let_go(&mut self) {
        match self {
            Look::OverSocket { answer, .. } => drop(answer.take()),
            // Also for later look-ups.
            Look::ByClient(gate) => gate.say("\n\n\n\n"),
        }
    }
}

/// A call of buildlock, started as the cell needs it.
enum Call<'f> {
    Plain(Running<'f>),
    OnTerminal { terminal: Terminal<'f>, foreground: Gate },
}

impl<'f> Call<'f> {
    fn start(f: &'f Fixture, cell: Cell, environment: OsString, command: &[OsString]) -> Self {
        let ignore = match cell.way {
            Ignored => format!("trap '' {}; ", cell.signal),
            _ => String::new(),
        };
        // If the limit is lower and may not be raised, there are no core files.
        let script = format!(
            "{ignore}ulimit -c unlimited 2>/dev/null; echo $$ >\"$STANDIN/buildlock.pid\"; \
             exec env \"$@\""
        );
        let mut words: Vec<OsString> = ["sh", "-c", &script, "sh"].map(OsString::from).to_vec();
        words.extend([environment, buildlock_path().into(), "-t".into(), TAG.into(), "--".into()]);
        words.extend_from_slice(command);
        if cell.way != Typed {
            let mut call = f.program(&words[0]).args(&words[1..]);
            // In a group of its own that is not orphaned: the kernel does not stop orphaned groups.
            call.command().process_group(0);
            return Call::Plain(call.start());
        }
        let foreground = Gate::new(f, "foreground");
        if cell.signal == "TSTP" {
            // With job control, as at a prompt.
            let jobs = "set -m; \"$@\"; echo $? >\"$STANDIN/stopped\"; \
                read _ <\"$STANDIN/foreground\"; fg; exit $?";
            let shell = ["bash", "-c", jobs, "bash"].map(OsString::from);
            words.splice(0..0, shell);
        }
        Call::OnTerminal { terminal: Terminal::start(f, &words).unwrap(), foreground }
    }

    /// Waits for its end, and says how it ended: `signal 2`, `code 0`.
    fn end(self) -> String {
        match self {
            Call::OnTerminal { terminal, .. } => terminal.end(),
            Call::Plain(running) => {
                let status = running.wait().status;
                assert!(!status.core_dumped(), "dumped core");
                match status.signal() {
                    Some(signal) => format!("signal {signal}"),
                    None => format!("code {}", status.code().unwrap()),
                }
            }
        }
    }
}

/// Lets buildlock wait on a terminal, and checks that it ends with `end` after `act`.
///
/// `act` returns the lock if it must stay held. Returns what the terminal showed after the last
/// frame of the live line.
fn after_the_live_line(
    act: impl FnOnce(&Terminal, ForeignLock) -> Option<ForeignLock>,
    end: &str,
) -> Option<String> {
    const FRAME: &str = "waiting for";
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let held = f.hold_lock(&lock);
    let script = "printf 'hello\\n'; docker build -t env:abc .";
    // Otherwise the kernel may discard what is written because of the interrupt.
    let start = "stty noflsh; exec env NO_COLOR=1 \"$0\" \"$@\"";
    let mut words: Vec<OsString> = ["sh", "-c", start].map(OsString::from).to_vec();
    words.push(buildlock_path().into());
    words.extend(["-t", TAG, "--", "sh", "-c", script].map(OsString::from));
    let terminal = Terminal::start(&f, &words)?;
    f.wait_for("two frames", || terminal.screen().matches(FRAME).count() >= 2);
    let held = act(&terminal, held);
    let ended = terminal.end();
    drop(held);
    assert_eq!(ended, end, "{}", f.scene());
    let screen = String::from_utf8_lossy(&fs::read(f.path("screen")).unwrap()).into_owned();
    screen.rsplit_once(FRAME).map(|(_, rest)| rest.to_owned())
}

/// Finds where the cursor's line is erased.
fn erasure(screen: &str) -> Option<usize> {
    let sequence = regex::Regex::new("(\r\x1b\\[[02]?K|\x1b\\[2K\r?|\r\x1b\\[0?J)").unwrap();
    sequence.find_iter(screen).last().map(|found| found.end())
}

#[test]
fn live_line_is_gone_after_ctrl_c() {
    let end = format!("signal {}", number("INT"));
    let press = |terminal: &Terminal, held| {
        terminal.press("\x03");
        Some(held)
    };
    let Some(rest) = after_the_live_line(press, &end) else { return };
    let Some(at) = erasure(&rest) else { panic!("it was left there: {rest:?}") };
    // The terminal itself may show what was typed.
    assert!(rest[at..].chars().all(|c| "^C\r\n".contains(c)), "{rest:?}");
}

#[test]
fn live_line_is_gone_when_the_build_command_begins() {
    let release = |_: &Terminal, held| {
        drop(held);
        None
    };
    let Some(rest) = after_the_live_line(release, "code 0") else { return };
    let (waited, built) = rest.split_once("buildlock: env:abc: locked").expect(&rest);
    assert!(waited.ends_with("\r\x1b[2K"), "it was left there: {rest:?}");
    assert!(!built.contains('\x1b'), "{rest:?}");
}

/// Kills the build command's parent after this pause, counted from its start.
fn kill_the_keeper_after(pause: Duration) {
    let f = Fixture::new();
    let _never = install_stubborn(&f);
    // The folders and the guard are there, and with --force there is no look. So the keeper is the
    // first child. The build command ignores TERM from the start.
    f.docker_build("env:before").run().assert_code(0);
    let words = ["--force", "-k", "200ms", "-t", TAG, "--", "stubborn"];
    let ignoring = f.program("sh").args(["-c", "trap '' TERM; exec \"$@\"", "sh"]);
    let mut first = ignoring.arg(buildlock_path()).args(words).start();
    let children = format!("/proc/{0}/task/{0}/children", first.pid());
    let keeper = loop {
        let text = fs::read_to_string(&children).unwrap_or_default();
        if let Some(keeper) = text.split_whitespace().next() {
            break keeper.parse().unwrap();
        }
        assert!(!first.has_ended(), "{}", f.scene());
    };
    let start = Instant::now();
    while start.elapsed() < pause {}
    send_signal(keeper, "KILL");

    let second = build_that_sees_overlap(&f).start();
    let first = first.wait();
    let ended = (first.status.code(), first.status.signal());
    assert!([(Some(125), None), (None, Some(9))].contains(&ended), "{first}");
    first.assert_stderr("lock-keeper");
    second.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new(), "after {pause:?}\n{first}");
    assert_eq!(f.processes(), [] as [u32; 0], "{}", f.scene());
}

#[test]
fn keeper_that_is_killed_at_any_moment_lets_no_second_build_in() {
    let pauses: Vec<_> = (0..32).map(|n| Duration::from_micros(100 * n)).collect();
    std::thread::scope(|scope| {
        for some in pauses.chunks(8) {
            scope.spawn(move || some.iter().copied().for_each(kill_the_keeper_after));
        }
    });
}

#[test]
fn storm_of_signals_does_not_end_a_buildlock_whose_build_succeeds() {
    let deaf = "trap '' USR1 USR2; echo deaf >\"$STANDIN/deaf\"; docker build -t env:abc .";
    let round = || {
        let f = Fixture::new();
        let mut build = f.buildlock(["-t", TAG, "--", "sh", "-c", deaf]).start();
        f.wait_for_file("deaf");
        while !build.has_ended() {
            ["USR1", "CONT", "WINCH", "USR2"].iter().for_each(|signal| build.signal(signal));
        }
        build.wait().assert_code(0).assert_stderr(": built");
        assert!(is_free(&f.lock_file(TAG)));
    };
    std::thread::scope(|scope| {
        (0..3).for_each(|_| _ = scope.spawn(|| (0..5).for_each(|_| round())));
    });
}
