//! The viewers of one channel on one thread: who must be sent the roster, and who the next diff.
//!
//! Pure. A viewer is first sent a roster, then every later diff: it has the version of what it was sent
//! last, and only what leads to a later version is news. So no diff is missed and none applied twice,
//! however views, rosters and diffs race.

use indexmap::IndexMap;

use super::ConnId;

/// One who views, and what it has.
#[derive(Debug)]
struct Viewer<V> {
    to: V,
    /// The version it has; none until it was sent the roster.
    has: Option<u64>,
}

/// The viewers of one channel on one thread, each with where it is sent to.
#[derive(Debug)]
pub struct Viewers<V> {
    /// Whether the channel knows of this hub, so that no diff passes it by.
    live: bool,
    /// How many have not been sent the roster.
    waiting: usize,
    viewers: IndexMap<ConnId, Viewer<V>>,
}

impl<V> Default for Viewers<V> {
    fn default() -> Self {
        Self { live: false, waiting: 0, viewers: IndexMap::new() }
    }
}

impl<V> Viewers<V> {
    /// `id` is told what is said from now on, but neither the roster nor diffs.
    pub fn insert_quiet(&mut self, id: ConnId, to: V) {
        self.remove(id);
        // Later than every version there is.
        self.viewers.insert(id, Viewer { to, has: Some(u64::MAX) });
    }

    /// `id` views from now on, in place of an earlier view of its own. If the roster of `published`, its
    /// version, must be sent to it now, where to.
    pub fn insert(&mut self, id: ConnId, to: V, published: Option<u64>) -> Option<&V> {
        let has = published.filter(|_| self.live);
        self.remove(id);
        self.waiting += usize::from(has.is_none());
        self.viewers.insert(id, Viewer { to, has });
        has.and_then(|_| self.viewers.get(&id)).map(|viewer| &viewer.to)
    }

    /// `id` views no more.
    pub fn remove(&mut self, id: ConnId) {
        let removed = self.viewers.swap_remove(&id);
        self.waiting -= usize::from(removed.is_some_and(|viewer| viewer.has.is_none()));
    }

    /// The channel knows of this hub from now on.
    pub fn go_live(&mut self) {
        self.live = true;
    }

    /// Its roster is published with `version`: those who wait for it, and for whom it `is_ready`.
    pub fn take_roster(&mut self, version: u64, is_ready: impl Fn(&V) -> bool) -> Vec<(ConnId, &V)> {
        if !self.live || self.waiting == 0 {
            return Vec::new();
        }
        let waiting =
            self.viewers.iter_mut().filter(|(_, viewer)| viewer.has.is_none() && is_ready(&viewer.to));
        let ready: Vec<_> = waiting
            .map(|(id, viewer)| {
                viewer.has = Some(version);
                (*id, &viewer.to)
            })
            .collect();
        self.waiting -= ready.len();
        ready
    }

    /// All who hear what is said, each with whether it has been sent the roster, or needs none.
    pub fn listeners(&self) -> impl Iterator<Item = (ConnId, &V, bool)> {
        self.viewers.iter().map(|(id, viewer)| (*id, &viewer.to, viewer.has.is_some()))
    }

    /// A diff leads to `version`: those to whom it is news.
    pub fn take_diff(&mut self, version: u64) -> impl Iterator<Item = (ConnId, &V)> {
        let is_news = move |viewer: &Viewer<V>| viewer.has.is_some_and(|has| has < version);
        self.viewers.iter_mut().filter(move |(_, viewer)| is_news(viewer)).map(move |(id, viewer)| {
            viewer.has = Some(version);
            (*id, &viewer.to)
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.viewers.len()
    }

    /// Whether nobody views.
    pub fn is_empty(&self) -> bool {
        self.viewers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids<'a>(told: impl IntoIterator<Item = (ConnId, &'a ())>) -> Vec<ConnId> {
        told.into_iter().map(|(id, ())| id).collect()
    }

    #[test]
    fn a_viewer_has_the_roster_first_and_then_every_later_diff_once() {
        let mut viewers = Viewers::default();
        assert_eq!(viewers.insert(1, (), Some(5)), None, "the channel does not know of this hub");
        assert_eq!(ids(viewers.take_diff(6)), [0; 0]);
        assert_eq!(ids(viewers.take_roster(7, |()| true)), [0; 0]);
        viewers.go_live();
        assert_eq!(ids(viewers.take_roster(7, |()| false)), [0; 0], "what it waits for is not in it");
        assert_eq!(ids(viewers.take_roster(7, |()| true)), [1]);
        assert_eq!(ids(viewers.take_roster(7, |()| true)), [0; 0]);
        assert_eq!(ids(viewers.take_diff(7)), [0; 0], "it is in the roster");
        assert_eq!(ids(viewers.take_diff(8)), [1]);
        assert_eq!(viewers.insert(2, (), Some(9)), Some(&()));
        assert_eq!(ids(viewers.take_diff(9)), [1]);
        assert_eq!(ids(viewers.take_diff(9)), [0; 0]);
        viewers.insert_quiet(3, ());
        assert_eq!(
            (ids(viewers.take_roster(10, |()| true)), ids(viewers.take_diff(10))),
            (vec![], vec![1, 2])
        );
        viewers.remove(1);
        viewers.remove(3);
        assert_eq!((viewers.len(), viewers.is_empty()), (1, false));
    }
}
