//! Results, the same for every suite.

use anyhow::Result;
use serde::Serialize;

/// What repeated runs of one case gave.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub suite: &'static str,
    pub case: String,
    pub unit: &'static str,
    pub min: f64,
    pub median: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    #[serde(flatten)]
    pub goal: Option<Goal>,
}

/// What was hoped for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Goal {
    /// The median of what the goal is relative to.
    pub floor: f64,
    /// What the goal is about.
    pub of: Of,
    /// It is to be at most this, or, if more is better, at least.
    pub goal: f64,
    pub met: bool,
}

/// What a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    Median,
    P99,
    Max,
}

/// How a goal is reached.
#[derive(Clone, Copy, Debug)]
pub enum Better {
    Less,
    More,
}

impl Row {
    /// Sums up the `values` of a case, of which there is at least one.
    pub fn new(suite: &'static str, case: impl Into<String>, unit: &'static str, values: &[f64]) -> Self {
        let mut v = values.to_vec();
        v.sort_by(f64::total_cmp);
        let at = |part: f64| v[((v.len() - 1) as f64 * part).round() as usize];
        Self {
            suite,
            case: case.into(),
            unit,
            min: at(0.0),
            median: median(values),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
            goal: None,
        }
    }

    /// Sets what is hoped for.
    pub fn with_goal(mut self, floor: f64, goal: f64, better: Better) -> Self {
        let met = match better {
            Better::Less => self.median <= goal,
            Better::More => self.median >= goal,
        };
        self.goal = Some(Goal { floor, of: Of::Median, goal, met });
        self
    }

    /// Sets what is hoped for of the slowest.
    pub fn with_most(mut self, of: Of, goal: f64) -> Self {
        let value = match of {
            Of::Median => self.median,
            Of::P99 => self.p99,
            Of::Max => self.max,
        };
        self.goal = Some(Goal { floor: 0.0, of, goal, met: value <= goal });
        self
    }
}

/// The middle of `values`, of which there is at least one; of an even number the mean of the two.
pub fn median(values: &[f64]) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    f64::midpoint(v[(v.len() - 1) / 2], v[v.len() / 2])
}

/// For programs.
pub fn print_json(rows: &[Row]) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(rows)?);
    Ok(())
}

/// For people: what falls short of its goal is marked.
pub fn print_table(rows: &[Row]) -> Result<()> {
    let width = rows.iter().map(|r| r.case.len()).max().unwrap_or(0);
    for suite in rows.chunk_by(|a, b| (a.suite, a.unit) == (b.suite, b.unit)) {
        let title = format!("{}, {}", suite[0].suite, suite[0].unit);
        println!("\n{title:width$}      min   median      p90      p99      max    floor     goal");
        for r in suite {
            let p = if r.max < 100.0 { 1 } else { 0 };
            print!("{:width$} {:8.p$} {:8.p$} {:8.p$} {:8.p$} {:8.p$}", r.case, r.min, r.median, r.p90, r.p99, r.max);
            match r.goal {
                None => println!(),
                Some(g) => {
                    let floor = match g.of {
                        Of::Median => format!("{:.p$}", g.floor),
                        Of::P99 => "of p99".to_owned(),
                        Of::Max => "of max".to_owned(),
                    };
                    println!(" {floor:>8} {:8.p$}{}", g.goal, if g.met { "" } else { "  <- short of its goal" });
                }
            }
        }
    }
    let goals: Vec<_> = rows.iter().filter_map(|r| r.goal).collect();
    println!("\n{} of {} goals met", goals.iter().filter(|g| g.met).count(), goals.len());
    Ok(())
}
