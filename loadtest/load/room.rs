//! What all clients of one channel share: numbers for names, frames already read, who ought to be there.
//!
//! A server sends one and the same frame to all members of a channel. Reading it once, and finding it
//! again by its bytes, leaves a thousand clients on one machine next to nothing to do.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use foldhash::fast::FixedState;

use crate::phoenix::{Message, Numbers};
use crate::protocol::Protocol;
use crate::view::{Bits, Seat, User, View};
use crate::ws::start_of;

/// Bytes of frames that a room remembers. States are the large ones, and their time is short.
const REMEMBERED: usize = 16 * 1024 * 1024;

type Map<K, V> = HashMap<K, V, FixedState>;

/// When a user's join was written, and to which node.
#[derive(Clone, Copy)]
pub struct Stamp {
    pub at: Instant,
    pub node: usize,
}

pub struct Room {
    pub topic: String,
    pub protocol: Protocol,
    names: RefCell<Names>,
    frames: RefCell<Frames>,
    stamps: RefCell<Map<User, Stamp>>,
    expected: RefCell<Bits>,
    expected_size: Cell<usize>,
}

#[derive(Default)]
struct Names {
    users: Map<String, User>,
    /// By user and ref: a ref is unique only within its user.
    places: Map<(User, Box<str>), u32>,
    /// Whose ref it is, by its number.
    owners: Vec<User>,
}

#[derive(Default)]
struct Frames {
    known: Map<Rc<[u8]>, Rc<Message>>,
    order: VecDeque<Rc<[u8]>>,
    bytes: usize,
}

/// How a view differs from what it ought to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Users who ought to be there and are not.
    pub missing: u64,
    /// Users who ought not to be there and are.
    pub extra: u64,
    /// Users who are there with more than their one connection.
    pub doubled: u64,
}

impl Names {
    fn user(&mut self, name: &str) -> User {
        if let Some(user) = self.users.get(name) {
            return *user;
        }
        let user = self.users.len() as User;
        self.users.insert(name.to_owned(), user);
        user
    }
}

impl Numbers for Names {
    fn seat(&mut self, user: &str, phx_ref: &str) -> Seat {
        let user = self.user(user);
        let next = self.owners.len() as u32;
        let place = *self.places.entry((user, phx_ref.into())).or_insert(next);
        if place == next {
            self.owners.push(user);
        }
        Seat { user, place }
    }
}

impl Frames {
    fn remember(&mut self, payload: &[u8], message: &Rc<Message>) {
        let payload: Rc<[u8]> = payload.into();
        self.bytes += payload.len();
        self.order.push_back(payload.clone());
        self.known.insert(payload, message.clone());
        while self.bytes > REMEMBERED {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= oldest.len();
            self.known.remove(&oldest);
        }
    }
}

impl Room {
    pub fn new(channel: String, protocol: Protocol) -> Self {
        Self {
            topic: protocol.topic(channel),
            protocol,
            names: RefCell::default(),
            frames: RefCell::default(),
            stamps: RefCell::default(),
            expected: RefCell::default(),
            expected_size: Cell::new(0),
        }
    }

    pub fn user(&self, name: &str) -> User {
        self.names.borrow_mut().user(name)
    }

    /// What a frame says; read only when these bytes have not come before.
    pub fn read(&self, payload: &[u8]) -> Result<Rc<Message>, String> {
        let mut frames = self.frames.borrow_mut();
        if let Some(known) = frames.known.get(payload) {
            return Ok(known.clone());
        }
        let read = self.protocol.read(payload, &self.topic, &mut *self.names.borrow_mut());
        let message = Rc::new(read.map_err(|e| format!("{e}: {}", start_of(payload)))?);
        frames.remember(payload, &message);
        Ok(message)
    }

    /// Notes that the join of `user` is being written now.
    pub fn stamp(&self, user: User, node: usize) {
        self.stamps.borrow_mut().insert(user, Stamp { at: Instant::now(), node });
    }

    pub fn stamp_of(&self, user: User) -> Option<Stamp> {
        self.stamps.borrow().get(&user).copied()
    }

    pub fn expect(&self, user: User) {
        if self.expected.borrow_mut().insert(user) {
            self.expected_size.set(self.expected_size.get() + 1);
        }
    }

    pub fn expect_gone(&self, user: User) {
        if self.expected.borrow_mut().remove(user) {
            self.expected_size.set(self.expected_size.get() - 1);
        }
    }

    /// How many ought to be there.
    pub fn expected_size(&self) -> usize {
        self.expected_size.get()
    }

    pub fn expects(&self, user: User) -> bool {
        self.expected.borrow().contains(user)
    }

    /// Compares a view, user by user, with who ought to be there.
    pub fn check(&self, view: &View) -> Mismatch {
        let owners = &self.names.borrow().owners;
        let expected = self.expected.borrow();
        let (mut found, mut doubled, mut mismatch) = (Bits::default(), Bits::default(), Mismatch::default());
        for place in view.present().iter() {
            let user = owners[place as usize];
            if !found.insert(user) {
                mismatch.doubled += u64::from(doubled.insert(user));
            } else if !expected.contains(user) {
                mismatch.extra += 1;
            }
        }
        mismatch.missing = expected.iter().filter(|user| !found.contains(*user)).count() as u64;
        mismatch
    }

    /// The places that each of `users` ever had, by user.
    pub fn places_of(&self, users: &[User]) -> Vec<(User, Vec<u32>)> {
        let owners = &self.names.borrow().owners;
        let mut by_user: Map<User, Vec<u32>> = users.iter().map(|user| (*user, Vec::new())).collect();
        for (place, owner) in owners.iter().enumerate() {
            if let Some(places) = by_user.get_mut(owner) {
                places.push(place as u32);
            }
        }
        by_user.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(members: &[(&str, &[&str])]) -> Vec<u8> {
        let members: Vec<String> = members
            .iter()
            .map(|(user, refs)| {
                let metas: Vec<String> = refs.iter().map(|r| format!(r#"{{"phx_ref":"{r}"}}"#)).collect();
                format!(r#""{user}":{{"metas":[{}]}}"#, metas.join(","))
            })
            .collect();
        format!(r#"["1",null,"room","presence_state",{{{}}}]"#, members.join(",")).into_bytes()
    }

    fn view_of(room: &Room, frame: &[u8]) -> View {
        let mut view = View::default();
        match &*room.read(frame).unwrap() {
            Message::State(seats) => view.state(seats, &mut |_| {}),
            other => panic!("{other:?}"),
        }
        view
    }

    #[test]
    fn a_view_is_compared_user_by_user() {
        let room = Room::new("room".to_owned(), Protocol::Phoenix);
        for name in ["a", "b", "c"] {
            room.expect(room.user(name));
        }
        let exact = view_of(&room, &state(&[("a", &["1"]), ("b", &["1"]), ("c", &["1"])]));
        assert_eq!(room.check(&exact), Mismatch::default());
        let wrong = view_of(&room, &state(&[("a", &["1", "2", "3"]), ("b", &["1"]), ("x", &["1"])]));
        assert_eq!(room.check(&wrong), Mismatch { missing: 1, extra: 1, doubled: 1 });
        assert_eq!(room.check(&View::default()).missing, 3);
    }

    #[test]
    fn the_same_bytes_are_read_once() {
        let room = Room::new("room".to_owned(), Protocol::Phoenix);
        let frame = state(&[("a", &["1"])]);
        let first = room.read(&frame).unwrap();
        assert!(Rc::ptr_eq(&first, &room.read(&frame).unwrap()));
        assert!(room.read(b"[1]").unwrap_err().ends_with("[1]"), "the frame's start is told");
    }

    #[test]
    fn remembered_frames_have_a_bound() {
        let mut frames = Frames::default();
        let message = Rc::new(Message::Joined);
        for n in 0..40_u8 {
            frames.remember(&vec![n; 1024 * 1024], &message);
        }
        assert!(frames.bytes <= REMEMBERED);
        assert_eq!(frames.known.len(), frames.order.len());
        assert!(frames.known.contains_key([39_u8; 1024 * 1024].as_slice()));
    }
}
