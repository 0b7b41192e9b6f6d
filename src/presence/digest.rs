//! The digest of a part: a number that two replicas have in common only if they show the same.
//!
//! Each taken seat adds its own number by exclusive or, so a digest can follow its part seat by seat, and
//! the order of the seats does not matter. It guards against mistakes, not against malice: nodes trust
//! each other.

use std::sync::Arc;

use super::{Entry, Part, Ref};

/// What one taken seat adds: FNV-1a over the seat's number and the ref, 64 bits (draft-eastlake-fnv), with
/// the bits mixed once more, since numbers of seats differ in few.
pub fn of_seat(seat: u64, r#ref: &Ref) -> u64 {
    let bytes = seat.to_le_bytes().into_iter().chain(r#ref.as_str().bytes());
    let sum = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    (sum ^ (sum >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// How the digest changes when `seat` does.
pub fn change(seat: u64, old: Option<&Arc<Entry>>, new: Option<&Arc<Entry>>) -> u64 {
    [old, new].into_iter().flatten().fold(0, |sum, entry| sum ^ of_seat(seat, &entry.r#ref))
}

impl Part {
    /// The digest of all its seats.
    pub fn digest(&self) -> u64 {
        self.seats.iter().fold(0, |sum, (seat, entry)| sum ^ of_seat(*seat, &entry.r#ref))
    }
}
