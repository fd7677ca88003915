//! When locks run out that have to be renewed.
//!
//! Two moments before the store gives them to somebody else: at the first one what runs under them
//! is told to end, at the second one it is killed. Both are timers of the kernel, so that they go
//! off also where this process is stopped or dead, in whoever has inherited them; and on the clock
//! that goes on while the machine sleeps (CLOCK_BOOTTIME). Nobody's time of day matters.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// A moment on the clock that goes on while the machine sleeps: the time since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // The clock begins with zero.
        Moment(Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32))
    }

    /// So much later; the end of all time at most.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Moment(self.0.saturating_add(duration))
    }

    /// How long it is until then; zero if it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }
}

/// The two timers.
#[derive(Debug)]
pub struct Expiry {
    end: OwnedFd,
    kill: OwnedFd,
}

impl Expiry {
    /// Two timers that are not set.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new() -> rustix::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = || timerfd_create(TimerfdClockId::Boottime, flags);
        Ok(Expiry { end: timer()?, kill: timer()? })
    }

    /// Sets both, whatever they were set to.
    pub fn set(&self, end: Moment, kill: Moment) {
        for (timer, moment) in [(&self.end, end), (&self.kill, kill)] {
            // Zero would switch it off.
            let moment = moment.0.max(Duration::from_nanos(1));
            // The kernel cannot count so far, so the timer must not go off. It may have been set
            // before.
            let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
            let it_value = Timespec::try_from(moment).unwrap_or(never);
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            // It can only fail for bad arguments.
            _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once);
        }
    }

    /// Readable from the moment on at which what runs is to end.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Readable from the moment on at which it is to be dead.
    pub fn kill(&self) -> BorrowedFd<'_> {
        self.kill.as_fd()
    }

    /// Has the first moment passed?
    pub fn is_over(&self) -> bool {
        went_off(self.end())
    }
}

/// Has this timer gone off?
pub fn went_off(timer: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&timer, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_go_off_when_they_were_set_to_and_not_once_they_are_set_anew() {
        let expiry = Expiry::new().unwrap();
        assert!(!expiry.is_over());
        let now = Moment::now();
        expiry.set(now, now.after(Duration::from_secs(3600)));
        assert!(expiry.is_over());
        assert!(!went_off(expiry.kill()));
        let later = now.after(Duration::from_secs(3600));
        expiry.set(later, later);
        assert!(!expiry.is_over());
        assert!(later.left() > Duration::from_secs(3000));
        assert_eq!(now.left(), Duration::ZERO);
    }

    #[test]
    fn moment_beyond_all_time_does_not_come() {
        let expiry = Expiry::new().unwrap();
        let now = Moment::now();
        expiry.set(now, now);
        let never = now.after(Duration::MAX);
        expiry.set(never, never);
        assert!(!expiry.is_over() && !went_off(expiry.kill()));
    }
}
