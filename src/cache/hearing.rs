//! Hearing: up to which moment this process has heard everything that others announce.
//!
//! Pub/Sub says nothing of what it lost, and a half-open connection is only silent. But messages and the answer
//! to a ping come in order on one connection: once a ping is answered and all before the answer was handled,
//! everything announced before the ping was sent has been heard. Who keeps a copy of something may trust it up to
//! that moment.
//!
//! **When Redis is away** the moment stands still, and with it what can be trusted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// What a subscriber has heard, told by it and asked by those who keep copies. Clones share it. One that no
/// subscriber ever confirms is deaf.
#[derive(Clone, Debug)]
pub struct Hearing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// Milliseconds after `began`; 0 while nothing can be said.
    up_to: AtomicU64,
    asked: Notify,
    confirmed: Notify,
}

impl Default for Hearing {
    fn default() -> Self {
        let (asked, confirmed) = (Notify::new(), Notify::new());
        Self(Arc::new(Inner { began: Instant::now(), up_to: AtomicU64::new(0), asked, confirmed }))
    }
}

impl Hearing {
    /// Everything announced before `moment` has been heard.
    pub fn confirm(&self, moment: Instant) {
        let millis = moment.saturating_duration_since(self.0.began).as_millis();
        self.0.up_to.store(millis.try_into().unwrap_or(u64::MAX), Ordering::Release);
        self.0.confirmed.notify_waiters();
    }

    /// The subscription is gone.
    pub fn lose(&self) {
        self.0.up_to.store(0, Ordering::Release);
    }

    /// The moment before which everything has been heard; none while there is no subscription.
    pub fn up_to(&self) -> Option<Instant> {
        match self.0.up_to.load(Ordering::Acquire) {
            0 => None,
            millis => Some(self.0.began + Duration::from_millis(millis)),
        }
    }

    /// Waits until everything announced before now has been heard. However many wait, the subscriber pings once
    /// for all. False if that cannot be said within `patience`, or there is no subscription.
    pub async fn catch_up(&self, patience: Duration) -> bool {
        let now = Instant::now();
        if self.up_to().is_none() {
            return false;
        }
        let waiting = async {
            loop {
                let confirmed = self.0.confirmed.notified();
                tokio::pin!(confirmed);
                // From here on no confirmation is missed.
                confirmed.as_mut().enable();
                match self.up_to() {
                    // A moment is kept in whole milliseconds, rounded down.
                    Some(moment) if moment >= now => return true,
                    None => return false,
                    _ => self.0.asked.notify_one(),
                }
                confirmed.await;
            }
        };
        tokio::time::timeout(patience, waiting).await.unwrap_or(false)
    }

    /// For the subscriber: returns when somebody waits for a ping.
    pub async fn asked(&self) {
        self.0.asked.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_who_wait_ask_for_few_pings() {
        let hearing = Hearing::default();
        assert!(!hearing.catch_up(Duration::from_secs(1)).await, "nobody listens");
        tokio::time::sleep(Duration::from_millis(2)).await;
        hearing.confirm(Instant::now());
        let subscriber = async {
            for pings in 1.. {
                hearing.asked().await;
                let sent = Instant::now();
                tokio::time::sleep(Duration::from_millis(5)).await;
                hearing.confirm(sent);
                if pings == 2 {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let all = (0..100).map(|_| hearing.catch_up(Duration::from_secs(5)));
        tokio::select! {
            () = subscriber => {}
            all = futures_util::future::join_all(all) => assert!(all.iter().all(|sure| *sure)),
        }
        hearing.lose();
        assert_eq!(hearing.up_to(), None);
    }

    #[tokio::test]
    async fn a_subscriber_that_does_not_answer_is_not_waited_for_for_ever() {
        let hearing = Hearing::default();
        tokio::time::sleep(Duration::from_millis(2)).await;
        hearing.confirm(Instant::now());
        assert!(!hearing.catch_up(Duration::from_millis(20)).await);
    }
}
