//! Quotas: how many connections one user and one address may have open on this node.
//!
//! Counted by this node alone and exactly: a [`Place`] is taken before a connection is opened and given
//! back when it is dropped. Only proven users are counted. A name that somebody merely claims counts
//! for nothing, or anybody could shut its owner out by claiming it often enough.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Limits;

/// Why a connection may not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    User,
    Address,
}

/// The open connections by user and by address.
#[derive(Debug)]
pub struct Quotas {
    users: Counts<Arc<str>>,
    addresses: Counts<IpAddr>,
}

#[derive(Debug)]
struct Counts<K> {
    /// 0 is no limit; then nothing is counted.
    most: usize,
    open: Mutex<HashMap<K, usize>>,
}

/// A place for one connection, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    quotas: Arc<Quotas>,
    user: Option<Arc<str>>,
    address: Option<IpAddr>,
}

impl Quotas {
    /// At most `users` connections for a user and `addresses` for an address; 0 is no limit.
    pub fn new(users: usize, addresses: usize) -> Arc<Self> {
        let (users, addresses) = (Counts::new(users), Counts::new(addresses));
        Arc::new(Self { users, addresses })
    }

    /// As the settings say.
    pub fn of(limits: &Limits) -> Arc<Self> {
        Self::new(limits.max_user_connections, limits.max_address_connections)
    }

    /// Takes a place for a connection of `user`, where it is proven, from `address`. IPv6 counts by /64,
    /// as for the rate limits.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(self: &Arc<Self>, user: Option<&Arc<str>>, address: IpAddr) -> Result<Place, Full> {
        // A place that is half taken gives back its half.
        let mut place = Place { quotas: Arc::clone(self), user: None, address: None };
        place.address = self.addresses.take(&network(address)).map_err(|()| Full::Address)?;
        if let Some(user) = user {
            place.user = self.users.take(user).map_err(|()| Full::User)?;
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.user.take().inspect(|user| self.quotas.users.give_back(user));
        self.address.take().inspect(|address| self.quotas.addresses.give_back(address));
    }
}

impl<K: Eq + Hash + Clone> Counts<K> {
    fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    /// What was counted, if anything is.
    fn take(&self, key: &K) -> Result<Option<K>, ()> {
        if self.most == 0 {
            return Ok(None);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(key.clone()).or_insert(0);
        if *count >= self.most {
            return Err(());
        }
        *count += 1;
        Ok(Some(key.clone()))
    }

    fn give_back(&self, key: &K) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                open.remove(key);
            }
        }
    }
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_that_is_given_back_is_free_again() {
        let (quotas, here) = (Quotas::new(2, 0), address("192.0.2.1"));
        let ada: Arc<str> = "ada".into();
        let first = quotas.take(Some(&ada), here).unwrap();
        let _second = quotas.take(Some(&ada), here).unwrap();
        assert_eq!(quotas.take(Some(&ada), here).err(), Some(Full::User));
        assert!(quotas.take(Some(&"bob".into()), here).is_ok() && quotas.take(None, here).is_ok());
        drop(first);
        let _third = quotas.take(Some(&ada), here).unwrap();
        assert_eq!(quotas.take(Some(&ada), here).err(), Some(Full::User));
        assert_eq!(quotas.users.open.lock().unwrap().len(), 1, "who has none is not kept");
    }

    #[test]
    fn addresses_count_as_households_and_a_refusal_counts_for_nothing() {
        let quotas = Quotas::new(1, 2);
        let ada: Arc<str> = "ada".into();
        let one = quotas.take(Some(&ada), address("2001:db8::1")).unwrap();
        assert_eq!(quotas.take(Some(&ada), address("2001:db8::2")).err(), Some(Full::User));
        let two = quotas.take(None, address("2001:db8::3")).unwrap();
        assert_eq!(quotas.take(None, address("2001:db8::4")).err(), Some(Full::Address));
        assert!(quotas.take(None, address("2001:db8:0:1::1")).is_ok());
        assert!(quotas.take(None, address("::ffff:192.0.2.1")).is_ok());
        drop((one, two));
        assert!(quotas.addresses.open.lock().unwrap().is_empty());
    }
}
