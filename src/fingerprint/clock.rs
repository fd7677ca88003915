//! Tells whether the clock has been set back.

use rustix::time::{ClockId, clock_gettime};

use super::stamp::Time;

/// What the clocks of this machine say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    /// The time of day, which can be set.
    pub(super) time: Time,
    /// Seconds since the machine was started, which cannot be set.
    uptime: i64,
    /// Differs each time the machine is started.
    boot: [u8; 36],
}

impl Clock {
    pub(super) const SIZE: usize = 8 + 4 + 8 + 36;

    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Realtime);
        let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = text.first_chunk().copied().unwrap_or([0; 36]);
        let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
        let uptime = clock_gettime(ClockId::Boottime).tv_sec;
        Self { time: (now.tv_sec, nanoseconds), uptime, boot }
    }

    /// Returns whether this is later than another moment by all clocks. If the clock was set back in
    /// between, a new change to a file can get the same time as an old one.
    pub(super) fn is_after(&self, other: &Clock) -> bool {
        /// In seconds: how far the clocks may drift apart, as they do with NTP.
        const DRIFT: i64 = 1;
        let by_the_clock = self.time.0.saturating_sub(other.time.0);
        let really = self.uptime.saturating_sub(other.uptime);
        self.time >= other.time
            && (self.boot != other.boot || by_the_clock.saturating_add(DRIFT) >= really)
    }

    pub(super) fn to_bytes(self) -> [u8; Clock::SIZE] {
        let mut bytes = [0; Clock::SIZE];
        bytes[..8].copy_from_slice(&self.time.0.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.time.1.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.uptime.to_be_bytes());
        bytes[20..].copy_from_slice(&self.boot);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Clock::SIZE]) -> Self {
        let number =
            |at: usize| i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let nanoseconds = u32::from_be_bytes(bytes[8..12].try_into().unwrap_or_default());
        let boot = bytes[20..].try_into().unwrap_or([0; 36]);
        Self { time: (number(0), nanoseconds), uptime: number(12), boot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_that_was_set_back_is_noticed() {
        let then = Clock { time: (1000, 5), uptime: 100, boot: [1; 36] };
        let later = |by_the_clock: i64, really: i64| Clock {
            time: (1000 + by_the_clock, 5),
            uptime: 100 + really,
            boot: [1; 36],
        };
        assert!(then.is_after(&then));
        assert!(later(60, 60).is_after(&then));
        assert!(later(3600, 60).is_after(&then), "set forward");
        assert!(!later(-1, 60).is_after(&then), "set back beyond the other moment");
        assert!(!later(60, 600).is_after(&then), "set back meanwhile");
        let rebooted = Clock { boot: [2; 36], uptime: 3, ..later(60, 0) };
        assert!(rebooted.is_after(&then));
        assert_eq!(Clock::from_bytes(&then.to_bytes()), then);
    }
}
