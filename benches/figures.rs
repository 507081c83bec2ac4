//! The table that is printed: what was measured, and what it should be.

use std::{fmt, time::Duration};

/// Figures in the order in which they were measured.
#[derive(Default)]
pub struct Table(Vec<Figure>);

struct Figure {
    name: String,
    value: String,
    target: String,
    good: Option<bool>,
}

impl Table {
    /// A figure that has no target.
    pub fn note(&mut self, name: impl Into<String>, value: impl fmt::Display) {
        self.0.push(Figure {
            name: name.into(),
            value: value.to_string(),
            target: String::new(),
            good: None,
        });
    }

    /// A figure, its target in words, and whether it is met.
    pub fn figure(&mut self, name: impl Into<String>, value: impl fmt::Display, target: &str, good: bool) {
        self.0.push(Figure {
            name: name.into(),
            value: value.to_string(),
            target: target.to_owned(),
            good: Some(good),
        });
    }
}

/// A Markdown table, so that it can stand in the documentation as it is.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&Figure) -> &str| self.0.iter().map(|figure| of(figure).chars().count()).max();
        let name = width(|figure| &figure.name).unwrap_or(0).max(6);
        let value = width(|figure| &figure.value).unwrap_or(0).max(5);
        let target = width(|figure| &figure.target).unwrap_or(0).max(6);
        writeln!(
            f,
            "| {:name$} | {:>value$} | {:target$} |     |",
            "figure", "value", "target"
        )?;
        writeln!(
            f,
            "| {} | {}: | {} | --- |",
            "-".repeat(name),
            "-".repeat(value - 1),
            "-".repeat(target)
        )?;
        for figure in &self.0 {
            let good = match figure.good {
                None => "",
                Some(true) => "ok",
                Some(false) => "NOT",
            };
            writeln!(
                f,
                "| {:name$} | {:>value$} | {:target$} | {good:3} |",
                figure.name, figure.value, figure.target
            )?;
        }
        Ok(())
    }
}

/// The value below which a share of the samples lies (nearest rank). The samples are sorted.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among at most some thousand samples"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(Duration::ZERO)
}

/// A count as a number to divide by and to show.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// One count per another.
pub fn per(count: u64, of: usize) -> f64 {
    number(count) / number(of as u64)
}

/// Milliseconds with one decimal.
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Seconds with two decimals.
pub fn s(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
