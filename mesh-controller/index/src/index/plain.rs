//! Objects that are compiled one by one, and those of which only is said that they have no effect.

use std::collections::BTreeMap;

use istio_compat::{
    translate::{scope, telemetry},
    types::{Sidecar, Telemetry},
};
use mesh_api::model;

use super::Index;
use crate::{object::Name, protocol};

fn put<T: PartialEq>(map: &mut BTreeMap<Name, T>, name: &Name, new: Option<T>) -> bool {
    if map.get(name) == new.as_ref() {
        return false;
    }
    match new {
        Some(object) => map.insert(name.clone(), object),
        None => map.remove(name),
    };
    true
}

impl Index {
    pub(super) fn put_sidecar(&mut self, name: &Name, new: Option<Sidecar>) -> bool {
        let old = self.sidecars.get(name).cloned();
        let changed = put(&mut self.sidecars, name, new);
        if changed {
            self.touched.sidecars.insert(name.clone());
            self.touch_ingress(name, old.as_ref());
        }
        changed
    }

    pub(super) fn put_telemetry(&mut self, name: &Name, new: Option<Telemetry>) -> bool {
        let changed = put(&mut self.telemetries, name, new);
        if changed {
            self.touched.telemetries.insert(name.clone());
        }
        changed
    }

    pub(super) fn compile_sidecar(&self, name: &Name) -> Option<model::Sidecar> {
        let protocol = |name: &str, number: u32| protocol::of_port("TCP", Some(name), "", number);
        self.sidecars.get(name).map(|o| scope::sidecar(o, &self.context, &protocol))
    }

    pub(super) fn compile_telemetry(&self, name: &Name) -> Option<model::Telemetry> {
        self.telemetries.get(name).and_then(|o| telemetry::telemetry(o, &self.context))
    }
}
