//! Ingress listeners of Sidecars: calls to a listener's port go to the port of its default endpoint. The node calls pods at
//! their own address, so of `127.0.0.1:PORT` and `0.0.0.0:PORT` the port counts; sockets cannot be reached.

use std::{net::IpAddr, sync::Arc};

use istio_compat::types::Sidecar;
use mesh_api::model;

use super::Index;
use crate::{
    kube::{self, Labels},
    object::Name,
};

/// A listener's port, the port behind it, and the address that it is bound to; none = any.
fn mapped(sidecar: &Sidecar) -> impl Iterator<Item = (u32, u32, Option<IpAddr>)> {
    sidecar.spec.ingress.iter().filter_map(|listener| {
        let (_, port) = listener.default_endpoint.rsplit_once(':')?;
        let bind = listener.bind.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified());
        Some((listener.port.as_ref()?.number, port.parse().ok()?, bind))
    })
}

impl Index {
    /// Puts the ports of default endpoints in the place of listeners' ports, for a workload with these labels and that
    /// address.
    pub(super) fn map_ingress(
        &self,
        namespace: &Arc<str>,
        (labels, address): (&Labels, IpAddr),
        ports: &mut [model::PortMap],
    ) {
        let first = Name { namespace: namespace.clone(), name: "".into() };
        let own = self.sidecars.range(first..).take_while(|(n, _)| n.namespace == *namespace);
        // Those with a selector first, then the oldest, as for what workloads may call.
        let selector =
            |s: &Sidecar| s.spec.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default();
        let fitting = own.map(|(_, s)| s).filter(|s| kube::selects(&selector(s), labels));
        let Some(sidecar) = fitting.min_by(|a, b| {
            let key = |s: &Sidecar| selector(s).is_empty();
            key(a).cmp(&key(b)).then_with(|| a.meta.age_order().cmp(&b.meta.age_order()))
        }) else {
            return;
        };
        for (listener, target, _) in mapped(sidecar).filter(|(.., bind)| bind.is_none_or(|ip| ip == address))
        {
            ports.iter_mut().filter(|p| p.target_port == listener).for_each(|p| p.target_port = target);
        }
    }

    /// A Sidecar changed: endpoints of its namespace may have other ports.
    pub(super) fn touch_ingress(&mut self, name: &Name, old: Option<&Sidecar>) {
        let maps = |s: Option<&Sidecar>| s.is_some_and(|s| mapped(s).next().is_some());
        if !maps(old) && !maps(self.sidecars.get(name)) {
            return;
        }
        let first = Name { namespace: name.namespace.clone(), name: "".into() };
        let services = self.services.range(first..).take_while(|(n, _)| n.namespace == name.namespace);
        let hosts: Vec<_> = services.map(|(n, _)| self.host_of(n)).collect();
        self.touched.endpoints.extend(hosts);
    }
}
