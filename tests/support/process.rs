//! Processes and signals, as `/proc` shows them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

/// Is there such a process, and is it not a mere zombie?
pub fn is_alive(pid: u32) -> bool {
    !matches!(state(pid), '-' | 'Z' | 'X')
}

/// Returns a process's state as ps shows it (R, S, T, Z); `-` if there is no such process.
pub fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it, in parentheses, may hold anything.
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// Returns the processor time that a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: u32 = rest.split(' ').skip(11).take(2).map(|n| n.parse::<u32>().unwrap()).sum();
    // USER_HZ, which is 100 wherever Rust's targets run Linux.
    f64::from(ticks) / 100.0
}

/// Returns the open descriptors of a process, and what each one is.
pub fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// Returns the number of a signal by its name without SIG.
pub fn number(signal: &str) -> i32 {
    match signal {
        "RTMIN" => nix::libc::SIGRTMIN(),
        name => format!("SIG{name}").parse::<Signal>().unwrap() as i32,
    }
}

/// Sends a signal by its name without SIG, unless the process is gone.
pub fn send_signal(pid: u32, name: &str) {
    if name.starts_with("RT") {
        // nix has no names for real-time signals.
        let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
        return;
    }
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    let signal: Signal = format!("SIG{name}").parse().unwrap();
    let _ = nix::sys::signal::kill(pid, signal);
}

/// Returns the hexadecimal mask on a line (`SigIgn`, `SigBlk`) of a `/proc/PID/status`.
pub fn signal_mask(status: &str, line: &str) -> u64 {
    let start = format!("{line}:");
    let found = status.lines().find_map(|l| l.strip_prefix(&start));
    let hex = found.unwrap_or_else(|| panic!("no {line} in\n{status}")).trim();
    u64::from_str_radix(hex, 16).unwrap()
}

/// Is this signal (by its name without SIG) in the mask?
pub fn is_in(mask: u64, signal: &str) -> bool {
    mask & (1 << (number(signal) - 1)) != 0
}

/// Resets signals that were ignored when the tests started, as in the background of a shell.
///
/// The programs that tests start would otherwise ignore them too.
pub(super) fn restore_signals() {
    use nix::sys::signal::{SigHandler, signal};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for name in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM] {
            // SAFETY: no handler is installed, and none is replaced.
            #[allow(unsafe_code)]
            unsafe { signal(name, SigHandler::SigDfl) }.unwrap();
        }
    });
}
