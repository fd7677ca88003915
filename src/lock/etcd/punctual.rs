//! Time limits of connections, precise to the millisecond.
//!
//! The kernel rounds the limit on a socket up by as much as an eighth (its timer wheel): two
//! seconds become two and a quarter. So a limit is set in parts, each shorter than the time left.

use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::time::Duration as Limit;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Makes each connection keep its time limits, below TLS.
#[derive(Debug)]
pub(super) struct Punctual;

impl<In: Transport> Connector<In> for Punctual {
    type Out = OnTime<In>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(OnTime))
    }
}

/// A connection whose reads end on time.
#[derive(Debug)]
pub(super) struct OnTime<T>(T);

/// Returns a part of `left` short enough that the kernel's rounding does not exceed `left`.
fn part_of(left: Duration) -> Duration {
    (left * 7 / 8).max(Duration::from_millis(1))
}

impl<T: Transport> Transport for OnTime<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    /// Sends at once: questions are shorter than a socket's buffer.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = match timeout.after {
            Limit::Exact(left) => NextTimeout { after: part_of(left).into(), ..timeout },
            Limit::NotHappening => timeout,
        };
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let Limit::Exact(within) = timeout.after else { return self.0.await_input(timeout) };
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout(timeout.reason));
            }
            let part = NextTimeout { after: part_of(left).into(), ..timeout };
            match self.0.await_input(part) {
                Err(Error::Timeout(_)) => {}
                done => return done,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
