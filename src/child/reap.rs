//! Reaping children that nothing in buildlock waits for.
//!
//! After `exec buildlock` in a script, the script's background jobs are buildlock's children, and
//! process 1 of a container gets every orphan. Unless they are reaped, they stay as zombies.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc;

/// Held while a thread has a child of its own to wait for.
static HAS_CHILD: Mutex<()> = Mutex::new(());

/// Keeps a child of this thread from being taken for one that nobody waits for, while the result
/// exists.
#[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "only etcd needs it"))]
pub(crate) fn pause() -> MutexGuard<'static, ()> {
    HAS_CHILD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps children that have ended, up to the keeper.
pub(super) fn strangers(keeper: u32) {
    // Otherwise, what has ended is for the next call.
    let Ok(_no_thread_has_one) = HAS_CHILD.try_lock() else { return };
    // SAFETY: system calls on memory of this stack frame.
    unsafe {
        loop {
            let mut ended: libc::siginfo_t = std::mem::zeroed();
            let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let looked = libc::waitid(libc::P_ALL, 0, &raw mut ended, look);
            let pid = ended.si_pid();
            if looked != 0 || pid == 0 || pid == keeper.cast_signed() {
                return;
            }
            libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG);
        }
    }
}
