//! What happens in one simulated run: made from a seed, printed when it fails, and shrunk.

use std::fmt;

/// A small generator of numbers: the same seed gives the same numbers on every machine (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, and without, `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Nodes, clients and channels of a run.
pub const NODES: usize = 3;
pub const CLIENTS: usize = 9;
pub const CHANNELS: usize = 2;

/// Something that happens from outside. What makes no sense when its time comes does nothing, so any
/// part of a scenario is a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client opens a socket to a node and joins a channel, or comes back to where it was.
    Join {
        client: usize,
        node: usize,
        channel: usize,
    },
    /// By its own word, at once.
    Leave {
        client: usize,
    },
    /// Another meta.
    Update {
        client: usize,
    },
    /// The socket ends without a word.
    Drop {
        client: usize,
    },
    /// The socket ends, and a moment later the client is back with the same meta, perhaps at another node.
    Reload {
        client: usize,
        node: usize,
    },
    /// The second half of a reload.
    Return {
        client: usize,
        node: usize,
        channel: usize,
    },
    /// The client is gone, but its socket hangs: only silence tells.
    Vanish {
        client: usize,
    },
    Crash {
        node: usize,
    },
    Start {
        node: usize,
    },
    Drain {
        node: usize,
    },
    /// As SIGSTOP and SIGCONT.
    Pause {
        node: usize,
        ms: u64,
    },
    /// Nothing passes between the node and Redis, and neither notices.
    CutOff {
        node: usize,
        ms: u64,
    },
    /// The node's subscription is closed by the server.
    CutSubscription {
        node: usize,
    },
    /// Redis dies and comes back empty, or with what it held at some moment before.
    RedisRestart {
        ms: u64,
        empty: bool,
    },
    /// Redis stands still, and then goes on.
    RedisFreeze {
        ms: u64,
    },
    Flush,
    /// Announcements get lost, doubled and out of order for a while.
    Lossy {
        ms: u64,
        percent: u64,
    },
}

/// Actions with the milliseconds at which they happen.
#[derive(Clone)]
pub struct Scenario {
    pub seed: u64,
    pub actions: Vec<(u64, Action)>,
}

impl Scenario {
    /// How long actions go on.
    const LENGTH_MS: u64 = 90_000;

    /// The scenario of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut actions = Vec::new();
        // Each run has its own mix: some are calm, some know one kind of fault only.
        let faults = dice.below(8);
        let busy = 20 + dice.below(120);
        let mut at = 0;
        for client in 0..CLIENTS {
            at += dice.below(400);
            let (node, channel) = (dice.below(NODES as u64) as usize, dice.below(CHANNELS as u64) as usize);
            actions.push((at, Action::Join { client, node, channel }));
        }
        for _ in 0..busy {
            at = dice.below(Self::LENGTH_MS);
            let action = Self::action(&mut dice, faults);
            actions.push((at, action));
        }
        actions.sort_by_key(|(at, _)| *at);
        Self { seed, actions }
    }

    /// An hour in which clients come, go, change and reload, and nothing breaks.
    pub fn calm_hour(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut actions = Vec::new();
        let mut at = 0;
        while at < 3_600_000 {
            at += dice.below(3_000);
            actions.push((at, Self::action(&mut dice, 0)));
        }
        Self { seed, actions }
    }

    fn action(dice: &mut Dice, faults: u64) -> Action {
        let client = dice.below(CLIENTS as u64) as usize;
        let node = dice.below(NODES as u64) as usize;
        let channel = dice.below(CHANNELS as u64) as usize;
        let is_fault = faults != 0 && dice.chance(22);
        if !is_fault {
            return match dice.below(11) {
                0..=3 => Action::Join { client, node, channel },
                4 => Action::Leave { client },
                5 => Action::Update { client },
                6 => Action::Drop { client },
                7 if dice.chance(30) => Action::Vanish { client },
                _ => Action::Reload { client, node },
            };
        }
        let kind = if faults == 7 || dice.chance(30) { dice.below(7) } else { faults };
        match kind {
            1 => match dice.below(3) {
                0 => Action::Crash { node },
                1 => Action::Start { node },
                _ => Action::Drain { node },
            },
            2 => Action::Pause { node, ms: 500 + dice.below(25_000) },
            3 => Action::CutOff { node, ms: 200 + dice.below(20_000) },
            4 => Action::CutSubscription { node },
            5 => match dice.below(4) {
                0 => Action::Flush,
                1 => Action::RedisFreeze { ms: 100 + dice.below(8_000) },
                _ => Action::RedisRestart { ms: 100 + dice.below(15_000), empty: dice.chance(60) },
            },
            6 => Action::Lossy { ms: 1_000 + dice.below(20_000), percent: 5 + dice.below(60) },
            _ => Action::Start { node },
        }
    }

    /// The shortest part of this scenario that still fails.
    pub fn shrink(&self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut best = self.clone();
        let mut size = best.actions.len().div_ceil(2);
        while size > 0 {
            let mut from = 0;
            while from < best.actions.len() {
                let mut tried = best.clone();
                tried.actions.drain(from..(from + size).min(best.actions.len()));
                if fails(&tried) {
                    best = tried;
                } else {
                    from += size;
                }
            }
            size /= 2;
        }
        best
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} actions:", self.seed, self.actions.len())?;
        self.actions.iter().try_for_each(|(at, action)| writeln!(f, "  {at:>6} ms  {action:?}"))
    }
}
