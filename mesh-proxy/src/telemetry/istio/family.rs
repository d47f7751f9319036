//! A family of series that have two dozen labels each. The text of the labels is written once, when a series is made,
//! and shared by the families that have the same: it is most of the memory of a series and of the work of a scrape.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{
    core::{Collector, Desc, Metric},
    proto::{self, MetricType},
};

/// Labels as they stand between the braces of a line.
pub(super) type LabelText = Arc<[u8]>;

/// Series that are looked at with the lock held, one time.
const STEP: usize = 128;

/// Writes labels.
pub(super) fn text<'l>(names: impl Iterator<Item = &'l str>, values: &[&'l str]) -> LabelText {
    let mut out = Vec::with_capacity(1024);
    node_rt::labels(names.zip(values.iter().copied()), &mut out);
    out.into()
}

/// All series of a name.
pub(super) struct Family<M> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    make: fn() -> Result<M, prometheus::Error>,
    desc: Desc,
    series: Mutex<Series<M>>,
}

struct Series<M> {
    places: HashMap<LabelText, usize>,
    /// In the order in which they came; none goes away.
    all: Vec<(LabelText, M)>,
}

impl<M> std::fmt::Debug for Family<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<M: Metric + Clone> Family<M> {
    pub(super) fn new(
        (name, help, kind): (&'static str, &'static str, MetricType),
        labels: &[&str],
        make: fn() -> Result<M, prometheus::Error>,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let labels = labels.iter().map(|l| (*l).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
        let series = Mutex::new(Series { places: HashMap::new(), all: Vec::new() });
        Ok(Arc::new(Self { name, help, kind, make, desc, series }))
    }

    fn lock(&self) -> MutexGuard<'_, Series<M>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The series with these labels.
    pub(super) fn get(&self, labels: &LabelText) -> Result<M, prometheus::Error> {
        let mut series = self.lock();
        if let Some(place) = series.places.get(labels) {
            return Ok(series.all[*place].1.clone());
        }
        let new = (self.make)()?;
        let place = series.all.len();
        series.places.insert(Arc::clone(labels), place);
        series.all.push((Arc::clone(labels), new.clone()));
        Ok(new)
    }

    /// Appends the lines of some series; says where to go on, none after the last.
    pub(super) fn expose(&self, from: usize, out: &mut Vec<u8>) -> Option<usize> {
        let series = self.lock();
        let to = series.all.len().min(from + STEP);
        let some = series.all[from.min(to)..to].to_vec();
        drop(series);
        if from == 0 && !some.is_empty() {
            node_rt::head(self.name, self.help, self.kind, out);
        }
        for (labels, metric) in &some {
            node_rt::series(self.name, self.kind, &metric.metric(), labels, out);
        }
        (some.len() == STEP).then_some(to)
    }
}

impl<M: Metric + Clone + 'static> Collector for Family<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let all = self.lock().all.clone();
        let metrics = all.into_iter().map(|(labels, metric)| {
            let mut metric = metric.metric();
            metric.set_label(pairs(&labels));
            metric
        });
        let mut family = proto::MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

/// Whoever gathers a family registers this.
pub(super) struct Gathered<M>(pub(super) Arc<Family<M>>);

impl<M: Metric + Clone + 'static> Collector for Gathered<M> {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        self.0.collect()
    }
}

/// The labels of a text that [`text`] wrote.
fn pairs(text: &[u8]) -> Vec<proto::LabelPair> {
    let text = String::from_utf8_lossy(text);
    let mut out = Vec::new();
    let mut rest = &*text;
    while let Some((name, more)) = rest.split_once("=\"") {
        let (mut value, mut escaped, mut end) = (String::new(), false, more.len());
        for (at, c) in more.char_indices() {
            match c {
                'n' if escaped => value.push('\n'),
                _ if escaped => value.push(c),
                '\\' => {}
                '"' => {
                    end = at + 1;
                    break;
                }
                _ => value.push(c),
            }
            escaped = c == '\\' && !escaped;
        }
        let mut pair = proto::LabelPair::default();
        pair.set_name(name.trim_start_matches(',').to_owned());
        pair.set_value(value);
        out.push(pair);
        rest = &more[end..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_out_of_their_text() {
        let values = ["plain", "q\"b\\n\nend,x=\"y\"", "", "é\\"];
        let text = text(["a", "b", "c", "d"].into_iter(), &values);
        let pairs = pairs(&text);
        let read: Vec<_> = pairs.iter().map(|p| (p.name(), p.value())).collect();
        assert_eq!(read, ["a", "b", "c", "d"].into_iter().zip(values).collect::<Vec<_>>());
    }
}
