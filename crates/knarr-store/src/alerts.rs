//! What is known about each subject of each alert rule. Read, judged by `knarr_core::alert` and written
//! in one transaction with the outbox, so that nothing is told twice and nothing is forgotten.

use knarr_core::alert::{AlertState, States, Subject};
use rusqlite::Row;

use crate::codec::Malformed;
use crate::error::StoreError;
use crate::read::{Columns as _, Reader};
use crate::transaction::Tx;

fn state(row: &Row<'_>) -> Result<((String, Subject), AlertState), StoreError> {
    let broken = || StoreError::damaged("the state of an alert", Malformed::Value);
    let subject: String = row.column(1)?;
    let state: String = row.column(2)?;
    Ok((
        (
            row.column(0)?,
            Subject::from_key(&subject).ok_or_else(broken)?,
        ),
        serde_json::from_str(&state).map_err(|_| broken())?,
    ))
}

impl Reader<'_> {
    /// What is known, for all rules.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn alert_states(&self) -> Result<States, StoreError> {
        let sql = "SELECT rule, subject, state FROM alert_states";
        self.all("read the states of alerts", sql, [], state)
            .map(|states| states.into_iter().collect())
    }
}

impl Tx<'_> {
    /// Makes `after` what is known, where it differs from `before`.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn set_alert_states(&mut self, before: &States, after: &States) -> Result<(), StoreError> {
        let operation = "write the states of alerts";
        for (rule, subject) in before.keys().filter(|key| !after.contains_key(*key)) {
            self.run(
                operation,
                "DELETE FROM alert_states WHERE rule = ?1 AND subject = ?2",
                (rule, subject.key()),
            )?;
        }
        let changed = after
            .iter()
            .filter(|(key, state)| before.get(*key) != Some(*state));
        for ((rule, subject), state) in changed {
            let text =
                serde_json::to_string(state).expect("numbers, texts and options are always JSON");
            self.run(
                operation,
                "INSERT INTO alert_states (rule, subject, state) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (rule, subject) DO UPDATE SET state = excluded.state",
                (rule, subject.key(), text),
            )?;
        }
        Ok(())
    }
}
