//! What Telemetry resources say about calls that come to this node's pods, as one worker follows it.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use mesh_core::{Tables, WorkloadEntry};

use crate::telemetry::{
    AccessLog,
    access_log::Entry,
    rules::{MetricRules, RuleTable, Side, TraceRules},
};

/// Most workloads whose rules are kept at hand; a full cache starts again.
const CACHED: usize = 1024;

/// The rules of the newest tables that were looked at.
#[derive(Default)]
pub(crate) struct Rules {
    tables: RefCell<Option<Arc<Tables>>>,
    rules: RefCell<Option<RuleTable>>,
    traces: RefCell<HashMap<usize, Traced>>,
}

struct Traced {
    rules: Rc<TraceRules>,
    /// Keeps the key's address taken.
    _workload: Option<Arc<WorkloadEntry>>,
}

impl Rules {
    /// Follows newer tables; says whether something has changed.
    pub(crate) fn follow(&self, tables: &Arc<Tables>) -> bool {
        let mut mine = self.tables.borrow_mut();
        if mine.as_ref().is_some_and(|m| Arc::ptr_eq(m, tables)) {
            return false;
        }
        let same = mine.as_ref().is_some_and(|m| m.same_telemetry(tables));
        *mine = Some(Arc::clone(tables));
        if same {
            return false;
        }
        *self.rules.borrow_mut() = RuleTable::of(tables);
        self.traces.borrow_mut().clear();
        true
    }

    /// What holds for the metrics of a workload that is called.
    pub(crate) fn metrics(&self, workload: Option<&WorkloadEntry>) -> MetricRules {
        let rules = self.rules.borrow();
        rules.as_ref().map(|rules| rules.metrics(workload, Side::Server)).unwrap_or_default()
    }

    /// Whether a call of a workload is logged.
    pub(crate) fn logs(&self, workload: Option<&WorkloadEntry>, log: &AccessLog, entry: &Entry) -> bool {
        match &*self.rules.borrow() {
            None => log.by_default(),
            Some(rules) => rules.logs(workload, Side::Server, (log, entry)),
        }
    }

    /// What holds for the traces of a workload that is called, for the collector of that name.
    pub(crate) fn traces(&self, workload: Option<&Arc<WorkloadEntry>>, provider: &str) -> Rc<TraceRules> {
        let key = workload.map_or(0, |w| Arc::as_ptr(w) as usize);
        let mut cache = self.traces.borrow_mut();
        if let Some(hit) = cache.get(&key) {
            return Rc::clone(&hit.rules);
        }
        let rules = match &*self.rules.borrow() {
            None => TraceRules::default(),
            Some(rules) => rules.traces(workload.map(|w| &**w), Side::Server, provider),
        };
        let rules = Rc::new(rules);
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(key, Traced { rules: Rc::clone(&rules), _workload: workload.cloned() });
        rules
    }
}
