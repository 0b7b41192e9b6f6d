//! What a run found: rows for a table, the same as one line of JSON, and whether it is good enough.

use serde_json::{Map, Value, json};

struct Row {
    key: &'static str,
    label: &'static str,
    value: Option<f64>,
    unit: &'static str,
    limit: Option<f64>,
}

impl Row {
    /// A limit is missed, too, by a value that could not be measured.
    fn is_missed(&self) -> bool {
        self.limit.is_some_and(|limit| self.value.is_none_or(|value| value > limit))
    }
}

pub struct Report {
    command: &'static str,
    rows: Vec<Row>,
    faults: Vec<String>,
}

impl Report {
    pub fn new(command: &'static str) -> Self {
        Self { command, rows: Vec::new(), faults: Vec::new() }
    }

    /// Adds a value; `None` is one that could not be measured.
    pub fn value(
        &mut self,
        key: &'static str,
        label: &'static str,
        unit: &'static str,
        value: impl Into<Option<f64>>,
    ) {
        self.limited(key, label, unit, value, None);
    }

    /// Adds a value that fails the run if it is over `limit`.
    pub fn limited(
        &mut self,
        key: &'static str,
        label: &'static str,
        unit: &'static str,
        value: impl Into<Option<f64>>,
        limit: Option<f64>,
    ) {
        self.rows.push(Row { key, label, value: value.into(), unit, limit });
    }

    /// Something that must not have happened.
    pub fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    pub fn is_good(&self) -> bool {
        self.faults.is_empty() && !self.rows.iter().any(Row::is_missed)
    }

    pub fn json(&self) -> String {
        let values: Map<_, _> = self.rows.iter().map(|row| (row.key.to_owned(), json!(row.value))).collect();
        let missed: Vec<_> = self.rows.iter().filter(|row| row.is_missed()).map(|row| row.key).collect();
        let (ok, command, faults) = (self.is_good(), self.command, &self.faults);
        json!({ "command": command, "ok": ok, "missed": missed, "faults": faults, "values": Value::Object(values) })
            .to_string()
    }

    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
        let mut out = format!("{}\n", self.command);
        for row in &self.rows {
            let value = row.value.map_or_else(|| "not measured".to_owned(), number);
            let limit = row.limit.map_or_else(String::new, |limit| {
                format!("   limit {} {}", number(limit), if row.is_missed() { "MISSED" } else { "kept" })
            });
            out += &format!("  {:<width$}  {value:>12} {}{limit}\n", row.label, row.unit);
        }
        for fault in &self.faults {
            out += &format!("  WRONG: {fault}\n");
        }
        out += if self.is_good() { "  good\n" } else { "  NOT GOOD\n" };
        out
    }
}

/// Whole numbers as they are, others with as many digits as one reads.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value.abs() < 10.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_limit_or_a_fault_is_not_good() {
        let mut report = Report::new("storm");
        report.limited("cpu", "CPU", "s", 0.5, Some(0.6));
        report.value("rss", "memory", "KiB", None);
        assert!(report.is_good());
        report.limited("p99", "p99", "ms", 120.0, Some(100.0));
        assert!(!report.is_good());
        assert!(report.table().contains("limit 100 MISSED"));
        let mut report = Report::new("storm");
        report.fault("one view is wrong".to_owned());
        assert!(!report.is_good());
    }

    #[test]
    fn what_was_not_measured_keeps_no_limit() {
        let mut report = Report::new("idle");
        report.limited("kib", "per member", "KiB", None, Some(16.0));
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(
            (&json["ok"], &json["missed"][0], &json["values"]["kib"]),
            (&json!(false), &json!("kib"), &Value::Null)
        );
    }
}
