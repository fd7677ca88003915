//! Prints measurements as a table for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One situation, with a row for each way to deal with it.
pub struct Case {
    pub title: String,
    pub rows: Vec<Row>,
}

/// One way of dealing with a situation.
pub struct Row {
    pub what: String,
    pub unit: Unit,
    /// The figures of all runs, measured in turns with the other rows.
    pub runs: Vec<f64>,
    /// buildlock's median divided by the median of this row.
    pub ratio: Option<f64>,
    /// The target: an upper limit for the ratio, or for the median of a row without a ratio.
    pub at_most: Option<f64>,
}

/// The unit of a row's figures.
#[derive(Clone, Copy)]
pub enum Unit {
    Seconds,
    MiB,
    Times,
}

impl Row {
    pub fn new(what: impl Into<String>, unit: Unit, runs: Vec<f64>) -> Self {
        Row { what: what.into(), unit, runs, ratio: None, at_most: None }
    }

    pub fn at_most(mut self, limit: f64) -> Self {
        self.at_most = Some(limit);
        self
    }

    /// Compares buildlock's row with this one.
    pub fn beside(mut self, buildlock: &Row) -> Self {
        self.ratio = Some(buildlock.median() / self.median());
        self
    }

    pub fn median(&self) -> f64 {
        median(&self.runs)
    }

    fn is_met(&self) -> Option<bool> {
        Some(self.ratio.unwrap_or(self.median()) <= self.at_most?)
    }
}

/// Returns the figure in the middle, or the mean of the two in the middle.
pub fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::MiB => format!("{value:.2} MiB"),
            Unit::Times => format!("{value:.2}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::MiB => "MiB",
            Unit::Times => "1",
        }
    }
}

/// The table, for the terminal as well as for a page.
pub fn markdown(cases: &[Case]) -> String {
    let head = ["case", "what", "runs", "median", "buildlock takes", "target", ""];
    let mut lines = vec![head.map(str::to_owned)];
    for case in cases {
        for (at, row) in case.rows.iter().enumerate() {
            let of_it = |value: f64| format!("{value:.3} of it");
            let target = |limit| match row.ratio {
                Some(_) => format!("≤ {limit} of it"),
                None => format!("≤ {}", row.unit.show(limit)),
            };
            lines.push([
                if at == 0 { case.title.clone() } else { String::new() },
                row.what.clone(),
                row.runs.len().to_string(),
                row.unit.show(row.median()),
                row.ratio.map(of_it).unwrap_or_default(),
                row.at_most.map(target).unwrap_or_default(),
                row.is_met().map_or("", |met| if met { "met" } else { "missed" }).to_owned(),
            ]);
        }
    }
    grid(&lines)
}

/// Lays out lines of cells as a Markdown table. The first line is the head.
pub fn grid<const N: usize>(lines: &[[String; N]]) -> String {
    let length = |text: &String| text.chars().count();
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines.iter().map(|line| length(&line[column])).max().unwrap_or_default()
    });
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (cell, &width) in line.iter().zip(&widths) {
            _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if at == 0 {
            for width in &widths {
                _ = write!(text, "| {} ", "-".repeat((*width).max(1)));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Returns all figures.
pub fn json(machine: &str, cases: &[Case]) -> Value {
    let row = |row: &Row| {
        json!({
            "what": row.what,
            "unit": row.unit.name(),
            "runs": row.runs,
            "median": row.median(),
            "buildlock_of_it": row.ratio,
            "target_at_most": row.at_most,
            "met": row.is_met(),
        })
    };
    let case = |case: &Case| json!({ "case": case.title, "rows": case.rows.iter().map(row).collect::<Vec<_>>() });
    json!({ "machine": machine, "cases": cases.iter().map(case).collect::<Vec<_>>() })
}
