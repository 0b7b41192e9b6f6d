//! Health: what is wrong just now, since when, and whether users notice it.
//!
//! The [`Board`] is plain data: problems are put up and taken down by name, with the time as an argument.
//! [`Health`] around it has the lock and the clock, and says in the log once when a problem comes, once
//! when it is over, and now and then how often it came again meanwhile. `/readyz` and `/metrics` show it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long something that happens, rather than lasts, is shown after it happened last.
const RECENT: Duration = Duration::from_secs(60);
/// The least time between two log lines about one problem that stands.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// Redis takes no writes of this node.
    RedisAway,
    /// What other nodes announce is not heard.
    SubscriptionLost,
    /// The database does not answer.
    DatabaseAway,
    /// This node's lease was gone from Redis: the others may have declared it dead.
    LeaseLost,
    /// No other node is declared dead for now.
    JudgementResting,
    /// Another node was declared dead.
    NodeGone,
    /// Everything of this node is being written to Redis again.
    Rewriting,
    /// Connections were ended because they did not read.
    SlowReaders,
    /// A connection was refused: the node has as many as it may.
    ConnectionsFull,
    /// A connection was refused: its user has as many as one may.
    UserFull,
    /// A connection was refused: its address has as many as one may.
    AddressFull,
    /// A channel was not opened: the node has as many as it may.
    ChannelsFull,
    /// Somebody was not let into a channel that has as many members as it may.
    MembersFull,
    /// This node is going away.
    Draining,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::RedisAway,
        Self::SubscriptionLost,
        Self::DatabaseAway,
        Self::LeaseLost,
        Self::JudgementResting,
        Self::NodeGone,
        Self::Rewriting,
        Self::SlowReaders,
        Self::ConnectionsFull,
        Self::UserFull,
        Self::AddressFull,
        Self::ChannelsFull,
        Self::MembersFull,
        Self::Draining,
    ];

    /// Its name in answers, metrics and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::RedisAway => "redis_away",
            Self::SubscriptionLost => "subscription_lost",
            Self::DatabaseAway => "database_away",
            Self::LeaseLost => "lease_lost",
            Self::JudgementResting => "judgement_resting",
            Self::NodeGone => "node_gone",
            Self::Rewriting => "rewriting",
            Self::SlowReaders => "slow_readers",
            Self::ConnectionsFull => "connections_full",
            Self::UserFull => "user_full",
            Self::AddressFull => "address_full",
            Self::ChannelsFull => "channels_full",
            Self::MembersFull => "members_full",
            Self::Draining => "draining",
        }
    }

    /// What it means, in plain words.
    pub fn effect(self) -> &'static str {
        match self {
            Self::RedisAway => {
                "this node goes on alone: its users keep their sockets and see nobody leave, and what \
                 happens on other nodes they see when Redis is back"
            }
            Self::SubscriptionLost => {
                "users here see what happens on other nodes late, after the next reading"
            }
            Self::DatabaseAway => {
                "nobody can sign in with a password or a refresh token, and settings stay as last known; \
                 sessions and presence go on"
            }
            Self::LeaseLost => {
                "the other nodes may have shown this node's members as gone; they come back as soon as \
                 everything is written again"
            }
            Self::JudgementResting => "a node that dies now is noticed up to one lease's life later",
            Self::NodeGone => "its members are shown as gone until their clients have connected elsewhere",
            Self::Rewriting => "other nodes go on with what they know of this one until it is done",
            Self::SlowReaders => "clients that did not read were disconnected; nobody else is affected",
            Self::ConnectionsFull => "new connections are refused with 503 (ROLLCALL_MAX_CONNECTIONS)",
            Self::UserFull => {
                "more connections of that user are refused with 429 (ROLLCALL_MAX_USER_CONNECTIONS)"
            }
            Self::AddressFull => {
                "more connections from that address are refused with 429 (ROLLCALL_MAX_ADDRESS_CONNECTIONS)"
            }
            Self::ChannelsFull => {
                "joins of channels that are not open here are refused (ROLLCALL_MAX_NODE_CHANNELS)"
            }
            Self::MembersFull => "more members of that channel are refused (ROLLCALL_MAX_CHANNEL_MEMBERS)",
            Self::Draining => "clients are told to connect elsewhere; new ones are refused with 503",
        }
    }

    /// Whether users notice it.
    pub fn affects_users(self) -> bool {
        !matches!(self, Self::JudgementResting | Self::Rewriting)
    }

    /// Whether it only happens: it is shown for a while, and nobody takes it down.
    fn passes(self) -> bool {
        matches!(
            self,
            Self::LeaseLost
                | Self::NodeGone
                | Self::SlowReaders
                | Self::ConnectionsFull
                | Self::UserFull
                | Self::AddressFull
                | Self::ChannelsFull
                | Self::MembersFull
        )
    }
}

/// A problem as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub what: Trouble,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// More about this very case; may be empty.
    pub detail: String,
    /// How often it came since.
    pub times: u64,
}

#[derive(Clone, Debug)]
struct Post {
    standing: Standing,
    began: Instant,
    last: Instant,
    said: Instant,
    said_times: u64,
}

/// What is to be said in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Began(Standing),
    /// It came so often since that was said last.
    Again(Standing, u64),
    /// It stood for so long.
    Over(Trouble, Duration),
}

/// The problems that stand.
#[derive(Clone, Debug, Default)]
pub struct Board {
    posts: BTreeMap<Trouble, Post>,
}

impl Board {
    /// `what` is so at `now`, which is `wall` on the clock on the wall.
    pub fn set(&mut self, what: Trouble, detail: &str, now: Instant, wall: u64) -> Option<News> {
        if let Some(post) = self.posts.get_mut(&what) {
            post.standing.times += 1;
            post.last = now;
            if post.standing.detail != detail {
                detail.clone_into(&mut post.standing.detail);
            }
            if now.saturating_duration_since(post.said) < SAY_AGAIN_AFTER {
                return None;
            }
            let times = post.standing.times - post.said_times;
            (post.said, post.said_times) = (now, post.standing.times);
            return Some(News::Again(post.standing.clone(), times));
        }
        let standing = Standing { what, since: wall, detail: detail.to_owned(), times: 1 };
        let post = Post { standing: standing.clone(), began: now, last: now, said: now, said_times: 1 };
        self.posts.insert(what, post);
        Some(News::Began(standing))
    }

    /// `what` is so no more.
    pub fn clear(&mut self, what: Trouble, now: Instant) -> Option<News> {
        let post = self.posts.remove(&what)?;
        Some(News::Over(what, now.saturating_duration_since(post.began)))
    }

    /// Takes down what has not happened for a while.
    pub fn sweep(&mut self, now: Instant) -> Vec<News> {
        let old =
            |post: &&Post| post.standing.what.passes() && now.saturating_duration_since(post.last) >= RECENT;
        let old: Vec<Trouble> = self.posts.values().filter(old).map(|post| post.standing.what).collect();
        old.into_iter().filter_map(|what| self.clear(what, now)).collect()
    }

    /// What stands, in a fixed order.
    pub fn standing(&self) -> Vec<Standing> {
        self.posts.values().map(|post| post.standing.clone()).collect()
    }
}

/// Whether users are affected by what stands, in a sentence.
pub fn users_affected(standing: &[Standing]) -> String {
    let mut felt = standing.iter().filter(|one| one.what.affects_users()).map(|one| one.what.effect());
    match felt.next() {
        None => "no: everybody is served, and sees everybody".to_owned(),
        Some(first) => felt.fold(format!("yes: {first}"), |told, effect| format!("{told}; {effect}")),
    }
}

/// The board of this process.
#[derive(Debug, Default)]
pub struct Health(Mutex<Board>);

impl Health {
    /// `what` is so. `detail` says more about this very case, and nothing secret.
    pub fn set(&self, what: Trouble, detail: &str) {
        let news = self.board().set(what, detail, Instant::now(), wall_clock());
        news.into_iter().for_each(say);
    }

    /// `what` is so no more, if it was.
    pub fn clear(&self, what: Trouble) {
        let news = self.board().clear(what, Instant::now());
        news.into_iter().for_each(say);
    }

    /// Sets or clears.
    pub fn is(&self, what: Trouble, so: bool, detail: &str) {
        if so { self.set(what, detail) } else { self.clear(what) }
    }

    /// What stands.
    pub fn standing(&self) -> Vec<Standing> {
        let mut board = self.board();
        let over = board.sweep(Instant::now());
        let standing = board.standing();
        drop(board);
        over.into_iter().for_each(say);
        standing
    }

    /// A panic elsewhere leaves the board whole: every change to it is one call.
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(news: News) {
    match news {
        News::Began(Standing { what, detail, .. }) => {
            let (users_affected, effect) = (what.affects_users(), what.effect());
            if users_affected {
                tracing::warn!(problem = what.name(), detail, users_affected, "{effect}");
            } else {
                tracing::info!(problem = what.name(), detail, users_affected, "{effect}");
            }
        }
        News::Again(Standing { what, detail, .. }, times) => {
            tracing::warn!(problem = what.name(), detail, times, "still, or again");
        }
        News::Over(what, stood) => {
            tracing::info!(problem = what.name(), seconds = stood.as_secs_f32(), "over");
        }
    }
}

fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_said_once_when_it_comes_and_once_when_it_is_over() {
        let (mut board, now) = (Board::default(), Instant::now());
        let began = board.set(Trouble::RedisAway, "refused", now, 7).unwrap();
        let News::Began(standing) = began else { panic!("{began:?}") };
        assert_eq!((standing.since, &*standing.detail), (7, "refused"));
        assert_eq!(board.set(Trouble::RedisAway, "timed out", now + Duration::from_secs(1), 8), None);
        assert_eq!(board.standing()[0].since, 7);
        assert_eq!(board.standing()[0].detail, "timed out");
        let over = board.clear(Trouble::RedisAway, now + Duration::from_secs(5));
        assert_eq!(over, Some(News::Over(Trouble::RedisAway, Duration::from_secs(5))));
        assert_eq!(board.clear(Trouble::RedisAway, now), None);
    }

    #[test]
    fn what_comes_again_and_again_is_said_now_and_then_and_passes() {
        let (mut board, now) = (Board::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(matches!(board.set(Trouble::SlowReaders, "", now, 0), Some(News::Began(_))));
        for second in 1..30 {
            assert_eq!(board.set(Trouble::SlowReaders, "", at(second), 0), None);
        }
        let Some(News::Again(_, 30)) = board.set(Trouble::SlowReaders, "", at(30), 0) else { panic!() };
        assert_eq!(board.sweep(at(89)), []);
        assert_eq!(board.sweep(at(90)).len(), 1);
        // What lasts is taken down by whoever put it up, and by nobody else.
        board.set(Trouble::Draining, "", now, 0);
        assert_eq!(board.sweep(at(10_000)), []);
    }

    #[test]
    fn users_are_told_of_only_where_they_notice() {
        let (mut board, now) = (Board::default(), Instant::now());
        assert!(users_affected(&board.standing()).starts_with("no: "));
        board.set(Trouble::Rewriting, "", now, 0);
        assert!(users_affected(&board.standing()).starts_with("no: "));
        board.set(Trouble::RedisAway, "", now, 0);
        assert_eq!(users_affected(&board.standing()), format!("yes: {}", Trouble::RedisAway.effect()));
    }

    #[test]
    fn names_differ() {
        let names: std::collections::BTreeSet<&str> = Trouble::ALL.iter().map(|what| what.name()).collect();
        assert_eq!(names.len(), Trouble::ALL.len());
    }
}
