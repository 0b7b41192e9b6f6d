//! A simulated client: what it sees, from the frames it was sent, and what of that cannot be.

use std::collections::BTreeMap;

use serde_json::Value;

/// Which client an entry is of, and which of its metas: clients of a simulation say so in their meta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    pub client: usize,
    pub meta: u64,
}

/// A client's roster, by ref. Guarantee G2: states and diffs applied in order are the roster.
#[derive(Clone, Debug, Default)]
pub struct ClientView {
    /// None before the first state.
    pub roster: Option<BTreeMap<String, (String, Shown)>>,
}

/// What one frame made appear and disappear: refs and whose.
#[derive(Debug, Default)]
pub struct Seen {
    pub joined: Vec<Shown>,
    pub left: Vec<Shown>,
}

impl ClientView {
    /// Takes in a frame in the form of `vsn=2.0.0`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn receive(&mut self, text: &str) -> Result<Seen, String> {
        let frame: Value = serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
        let payload = &frame[4];
        match frame[3].as_str() {
            Some("presence_state") => self.receive_state(payload),
            Some("presence_diff") => self.receive_diff(payload),
            other => Err(format!("event {other:?}")),
        }
    }

    fn receive_state(&mut self, payload: &Value) -> Result<Seen, String> {
        if self.roster.is_some() {
            return Err("a second state".to_owned());
        }
        let mut roster = BTreeMap::new();
        for (user, reference, shown) in entries(payload)? {
            if roster.insert(reference.clone(), (user, shown)).is_some() {
                return Err(format!("{reference} stands twice in the state"));
            }
        }
        self.roster = Some(roster);
        Ok(Seen::default())
    }

    fn receive_diff(&mut self, payload: &Value) -> Result<Seen, String> {
        let Some(roster) = &mut self.roster else { return Err("a diff before the state".to_owned()) };
        let mut seen = Seen::default();
        for (user, reference, shown) in entries(&payload["joins"])? {
            if roster.insert(reference.clone(), (user, shown)).is_some() {
                return Err(format!("{reference} joined, but was there"));
            }
            seen.joined.push(shown);
        }
        for (_, reference, shown) in entries(&payload["leaves"])? {
            if roster.remove(&reference).is_none() {
                return Err(format!("{reference} left, but was not there"));
            }
            seen.left.push(shown);
        }
        Ok(seen)
    }
}

/// The entries of a state, or of one half of a diff: user, ref and whose it is.
fn entries(users: &Value) -> Result<Vec<(String, String, Shown)>, String> {
    let mut found = Vec::new();
    for (user, shown) in users.as_object().ok_or("no object")? {
        let metas = shown["metas"].as_array().filter(|metas| !metas.is_empty()).ok_or("no metas")?;
        for meta in metas {
            let reference = meta["phx_ref"].as_str().ok_or("no ref")?.to_owned();
            let number = |name: &str| meta[name].as_u64().ok_or_else(|| format!("no {name} in {meta}"));
            let shown = Shown { client: number("client")? as usize, meta: number("meta")? };
            found.push((user.clone(), reference, shown));
        }
    }
    Ok(found)
}
