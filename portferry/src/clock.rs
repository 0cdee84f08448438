//! The one clock: milliseconds since the machine started, suspend included, so that leases and lifetimes end on time
//! after a nap.

use std::io;
use std::time::Duration;

use engine::time::Instant;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe;

/// Now.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    Instant::from_millis(seconds * 1000 + millis)
}

/// So long at most without looking where the system has no timer to give.
const RESORT: Duration = Duration::from_secs(10);

/// Wakes at times of this clock, which goes on while the machine sleeps; a timer of tokio's stands still then.
#[derive(Debug, Default)]
pub struct Alarm {
    /// A timer of the kernel's, which is read like a pipe.
    timer: Option<pipe::Receiver>,
    /// What it is set to, until it has rung.
    set: Option<Instant>,
}

impl Alarm {
    /// Resolves at that time, at once when it is over, with `None` never. It may come early, and then comes again. Cancel-safe.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub async fn at(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return std::future::pending().await };
        if let Err(error) = self.ring(at).await {
            tracing::debug!("a timer: {error}");
            *self = Self::default();
            tokio::time::sleep(RESORT.min(at - now() + Duration::from_millis(1))).await;
        }
    }

    async fn ring(&mut self, at: Instant) -> io::Result<()> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
                let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
                none.insert(pipe::Receiver::from_owned_fd_unchecked(timer)?)
            }
        };
        if self.set != Some(at) {
            let (seconds, millis) = (at.as_millis() / 1000, at.as_millis() % 1000);
            let it_value = Timespec {
                tv_sec: seconds.try_into().unwrap_or(i64::MAX),
                // Nothing at all would switch it off.
                tv_nsec: if at.as_millis() == 0 { 1 } else { i64::try_from(millis).unwrap_or(0) * 1_000_000 },
            };
            let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            let value = Itimerspec { it_interval, it_value };
            timerfd_settime(&*timer, TimerfdTimerFlags::ABSTIME, &value)?;
            self.set = Some(at);
        }
        loop {
            timer.readable().await?;
            match timer.try_read(&mut [0; 8]) {
                // It was set again after it had rung.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    self.set = None;
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_at_its_time_and_not_before() {
        let (mut alarm, start) = (Alarm::default(), now());
        alarm.at(Some(Instant::default())).await;
        let late = start + Duration::from_secs(3600);
        for at in [start + Duration::from_millis(30), start, start + Duration::from_millis(60)] {
            // What is given up for something earlier rings no more.
            tokio::select! {
                biased;
                () = alarm.at(Some(late)) => panic!("too early"),
                () = std::future::ready(()) => {}
            }
            alarm.at(Some(at)).await;
            assert!(now() >= at);
        }
        tokio::select! {
            biased;
            () = alarm.at(Some(late)) => panic!("too early"),
            () = alarm_of_its_own(start + Duration::from_millis(90)) => {}
        }
    }

    async fn alarm_of_its_own(at: Instant) {
        Alarm::default().at(Some(at)).await;
    }
}
