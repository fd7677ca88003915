//! Two kernel timers guard locks that must be renewed.
//!
//! When the first goes off, the build command is told to end; when the second goes off, it is
//! killed. Both go off before the store may give the locks to another caller. The keeper inherits
//! them, so they work even if buildlock is stopped or dead. They use the clock that continues while
//! the machine sleeps (CLOCK_BOOTTIME), so no time of day matters.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// A moment on the clock that continues while the machine sleeps: the time since the machine
/// started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // The clock starts at zero.
        Moment(Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32))
    }

    /// Returns the moment that is `duration` later, or the last one that can be represented.
    #[must_use]
    pub(crate) fn after(self, duration: Duration) -> Self {
        Moment(self.0.saturating_add(duration))
    }

    /// Returns the time until this moment; zero if it has passed.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }
}

/// The timers of locks that must be renewed: one to end the build command, one to kill it.
#[derive(Debug)]
pub struct Expiry {
    end: OwnedFd,
    kill: OwnedFd,
}

impl Expiry {
    /// Creates two timers that are not set.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = || timerfd_create(TimerfdClockId::Boottime, flags);
        Ok(Expiry { end: timer()?, kill: timer()? })
    }

    /// Sets both timers, replacing what they were set to.
    pub(crate) fn set(&self, end: Moment, kill: Moment) {
        for (timer, moment) in [(&self.end, end), (&self.kill, kill)] {
            // Zero would disarm the timer.
            let moment = moment.0.max(Duration::from_nanos(1));
            // If the kernel cannot represent the moment, the timer must not go off. It may have been
            // set before, so set it to the last moment there is.
            let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
            let it_value = Timespec::try_from(moment).unwrap_or(never);
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            // This can only fail for bad arguments.
            _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once);
        }
    }

    /// Returns a descriptor that is readable once the build command must end.
    pub(crate) fn end_timer(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Returns a descriptor that is readable once the build command must be killed.
    pub(crate) fn kill_timer(&self) -> BorrowedFd<'_> {
        self.kill.as_fd()
    }

    /// Returns whether the first timer has gone off.
    pub(crate) fn must_end(&self) -> bool {
        went_off(self.end_timer())
    }
}

/// Returns whether the timer has gone off.
pub(crate) fn went_off(timer: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&timer, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_go_off_when_set_to_and_not_after_they_are_set_anew() {
        let expiry = Expiry::new().unwrap();
        assert!(!expiry.must_end());
        let now = Moment::now();
        expiry.set(now, now.after(Duration::from_secs(3600)));
        assert!(expiry.must_end());
        assert!(!went_off(expiry.kill_timer()));
        let later = now.after(Duration::from_secs(3600));
        expiry.set(later, later);
        assert!(!expiry.must_end());
        assert!(later.remaining() > Duration::from_secs(3000));
        assert_eq!(now.remaining(), Duration::ZERO);
    }

    #[test]
    fn moment_beyond_the_clock_does_not_come() {
        let expiry = Expiry::new().unwrap();
        let now = Moment::now();
        expiry.set(now, now);
        let never = now.after(Duration::MAX);
        expiry.set(never, never);
        assert!(!expiry.must_end() && !went_off(expiry.kill_timer()));
    }
}
