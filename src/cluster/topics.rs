//! The topics: which announcements this node must hear, and which of them it already does.
//!
//! Pure. Pub/Sub delivers at most once, and nothing while the subscription is away. So a channel is
//! told to read after every (re)subscription of its topic: first subscribed, then read, so that what
//! happens in between is heard, and what was missed before is in the store.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What must be asked of Redis so that the right topics are heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
}

/// The topics of one node's channels.
#[derive(Debug, Default)]
pub struct Topics {
    wanted: HashMap<String, Arc<str>>,
    subscribed: HashSet<String>,
    /// Topics opened or closed since [`Topics::next`].
    touched: BTreeSet<String>,
}

impl Topics {
    /// `channel` wants to hear `topic`.
    pub fn open(&mut self, topic: String, channel: &Arc<str>) {
        self.touched.insert(topic.clone());
        self.wanted.insert(topic, Arc::clone(channel));
    }

    /// Nobody wants to hear `topic` any more.
    pub fn close(&mut self, topic: String) {
        self.wanted.remove(&topic);
        self.touched.insert(topic);
    }

    /// A subscription begins, in which nothing is heard yet.
    pub fn begin(&mut self) {
        self.subscribed.clear();
        self.touched = self.wanted.keys().cloned().collect();
    }

    /// What changed since the last call.
    #[must_use]
    pub fn next(&mut self) -> Interest {
        let mut interest = Interest::default();
        for topic in std::mem::take(&mut self.touched) {
            match self.wanted.contains_key(&topic) {
                true => interest.subscribe.push(topic),
                false if self.subscribed.remove(&topic) => interest.unsubscribe.push(topic),
                false => {}
            }
        }
        interest
    }

    /// Whether `topic` is heard already: then it need not be subscribed to.
    pub fn is_subscribed(&self, topic: &str) -> bool {
        self.subscribed.contains(topic)
    }

    /// `topics` are heard now: the channels that must read.
    #[must_use]
    pub fn subscribed(&mut self, topics: &[String]) -> Vec<Arc<str>> {
        self.subscribed.extend(topics.iter().cloned());
        topics.iter().filter_map(|topic| self.wanted.get(topic).cloned()).collect()
    }

    /// The channel that wants to hear `topic`.
    pub fn channel(&self, topic: &str) -> Option<&Arc<str>> {
        self.wanted.get(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wanted_is_heard_and_every_new_subscription_leads_to_a_reading() {
        let mut topics = Topics::default();
        topics.open("a".into(), &"A".into());
        topics.open("b".into(), &"B".into());
        topics.close("b".into());
        assert_eq!(topics.next(), Interest { subscribe: vec!["a".into()], unsubscribe: vec![] });
        assert_eq!(topics.subscribed(&["a".to_owned()]), [Arc::from("A")]);
        topics.close("a".into());
        assert_eq!(topics.next(), Interest { subscribe: vec![], unsubscribe: vec!["a".into()] });
        topics.open("a".into(), &"A".into());
        assert_eq!(topics.next().subscribe, ["a"]);
        topics.begin();
        assert_eq!(topics.next().subscribe, ["a"]);
        assert_eq!(topics.next(), Interest::default());
    }
}
