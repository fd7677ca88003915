//! Finding the keeper's children. For use in the forked process: system calls only.

use nix::libc;

/// Calls `act` with each child. Children of these become the keeper's later, for the next call.
///
/// `/proc/thread-self/children` (proc_pid_tid_children(5)) lists them, each followed by a space.
/// Without it, waitid(2) tells whether a process id is that of a child.
pub(super) fn for_each_child(has_proc: bool, mut act: impl FnMut(libc::pid_t)) {
    /// Room for this many bytes of the list; the rest is for the next call.
    const AT_ONCE: usize = 4096;
    /// The largest process id, unless more are allowed (proc_sys_kernel(5)).
    const PID_MAX: libc::pid_t = 1 << 15;
    /// The largest that can be allowed.
    const PID_MAX_LIMIT: libc::pid_t = 1 << 22;
    let mut text = [0_u8; AT_ONCE];
    let mut read = -1;
    if has_proc {
        // SAFETY: system calls only, on memory of this stack frame and a constant string that
        // ends with NUL.
        unsafe {
            let path = c"/proc/thread-self/children".as_ptr();
            let children = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
            read = libc::read(children, text.as_mut_ptr().cast(), text.len());
            libc::close(children);
        }
    }
    let Ok(length) = usize::try_from(read) else {
        // The kernel gives out process ids in turn, so those of children lie between our own and
        // the next one.
        // SAFETY: system calls only; the new process does nothing but end.
        let (own, next) = unsafe {
            // Like fork(2), but its end sends no signal, which would wake us to do this again.
            let next = libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as libc::pid_t;
            match next {
                0 => libc::_exit(0),
                -1 => (0, PID_MAX_LIMIT),
                _ => {
                    libc::waitpid(next, std::ptr::null_mut(), libc::__WALL);
                    (libc::getpid(), next)
                }
            }
        };
        // Unless the kernel has started over from the lowest one.
        let highest = if own <= PID_MAX { PID_MAX } else { PID_MAX_LIMIT };
        let (up_to, lowest) = if own < next { (next, next) } else { (highest, 1) };
        return (own..=up_to).chain(lowest..=next).filter(|&pid| is_child(pid)).for_each(act);
    };
    let mut pid: libc::pid_t = 0;
    for &c in &text[..length] {
        match c {
            b'0'..=b'9' => pid = pid.wrapping_mul(10).wrapping_add(libc::pid_t::from(c - b'0')),
            _ => {
                if pid > 0 {
                    act(pid);
                }
                pid = 0;
            }
        }
    }
}

fn is_child(pid: libc::pid_t) -> bool {
    // SAFETY: a system call on memory of this stack frame.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut about, look) == 0
    }
}
