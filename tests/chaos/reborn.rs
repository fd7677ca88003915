//! Reused pids: a call below a process with the pid of another call, which was killed while its
//! build goes on under its lock.
//!
//! The kernel still names that pid as the holder of the lock. A call that mistook it for a process
//! above itself would believe that it is nested in the other build, and build beside it.
//!
//! `clone3(2)` starts a process with a chosen pid as soon as that is free, without disturbing other
//! processes of the machine. It needs root and Linux 5.5.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::process::{Pid, test_kill_process};

use crate::world::{World, began};

/// The name of this strike, which must happen.
pub const REUSED: &str = "process number reused under its lock";

/// The longest wait for a pid to become free.
const FREE_WITHIN: Duration = Duration::from_millis(500);
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// Plays `reborn NUMBER USER PROGRAM ARG...`: starts a process with this pid, and the program as
/// its child. Prints the child's pid and start time once there is one, and at the end how it ended.
pub fn program(words: &[String]) -> ExitCode {
    let number: i32 = words[0].parse().unwrap();
    let user: u32 = words[1].parse().unwrap();
    let pid = Pid::from_raw(number).unwrap();
    let until = Instant::now() + FREE_WITHIN;
    loop {
        if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            match clone_as(number) {
                Ok(0) => return run_below(user, &words[2..]),
                Ok(_) => {
                    _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(number), None);
                    return ExitCode::SUCCESS;
                }
                // Still the number of a session or a process group, or of another process.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => {
                    eprintln!("{error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        if Instant::now() > until {
            return ExitCode::FAILURE;
        }
        std::thread::sleep(TRY_AGAIN);
    }
}

/// Forks. The child's pid is `number`. Returns 0 in the child.
fn clone_as(number: i32) -> std::io::Result<libc::c_long> {
    let numbers = [number];
    // struct clone_args: zeros, except for exit_signal, set_tid and set_tid_size.
    let mut arguments = [0_u64; 10];
    arguments[4] = libc::SIGCHLD.cast_unsigned().into();
    arguments[8] = numbers.as_ptr() as u64;
    arguments[9] = numbers.len() as u64;
    // SAFETY: this program has one thread here, so its copy may do anything; the kernel reads
    // `numbers` and `arguments` before it returns.
    #[allow(unsafe_code)]
    let cloned =
        unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    if cloned < 0 { Err(std::io::Error::last_os_error()) } else { Ok(cloned) }
}

fn run_below(user: u32, words: &[String]) -> ExitCode {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdout(Stdio::null());
    if user != 0 {
        command.uid(user).gid(user);
    }
    let mut child = command.spawn().expect("a child");
    // Not reaped yet, so it has a start time.
    println!("{} {}", child.id(), began(child.id()).unwrap());
    println!("{}", child.wait().unwrap().into_raw());
    ExitCode::SUCCESS
}

/// How a program below a chosen pid ended.
pub struct Ended {
    pub pid: u32,
    pub began: u64,
    pub status: ExitStatus,
}

/// Runs what [`program`] starts, with the settings of `command`, and calls `started` once the child
/// exists. Returns none if there was no such process.
pub fn run(mut command: Command, started: impl FnOnce()) -> Option<Ended> {
    let mut helper = command.stdout(Stdio::piped()).spawn().expect("this program");
    let mut lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let mut line = || lines.next()?.ok();
    let ended = line().and_then(|first| {
        started();
        let (pid, began) = first.split_once(' ')?;
        let status = ExitStatus::from_raw(line()?.parse().ok()?);
        Some(Ended { pid: pid.parse().ok()?, began: began.parse().ok()?, status })
    });
    _ = helper.wait();
    ended
}

/// Prepares a command for [`run`], in the world's environment.
pub fn command(world: &World, number: u32, user: Option<u32>) -> Command {
    let mut command = world.command(std::env::current_exe().unwrap());
    command.arg("reborn").arg(number.to_string()).arg(user.unwrap_or(0).to_string());
    command
}

/// Can processes with chosen pids be started here?
pub fn is_possible(world: &World) -> bool {
    let mut first = Command::new("true").spawn().unwrap();
    let number = first.id();
    first.wait().unwrap();
    let mut command = command(world, number, None);
    command.arg("true").stderr(Stdio::null());
    run(command, || {}).is_some()
}
