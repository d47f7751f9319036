//! What the mesh says where rules say nothing.

use std::{sync::Arc, time::Duration};

use mesh_api::model::{self, connection_pool::H2Upgrade as Wanted};

use super::{Balancing, EffectivePolicy, H2Upgrade, LocalityPolicy, OutlierPolicy, Pool, millis, pool};

/// Settings of the mesh for what DestinationRules leave open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyDefaults {
    connect_timeout: Option<Duration>,
    keepalive: Option<pool::TcpKeepalive>,
    h2_upgrade: bool,
    locality: Option<Arc<LocalityPolicy>>,
    /// For rules without limits of their own, with what they say.
    block: Option<(Pool, Said)>,
    pub(super) outlier: Option<OutlierPolicy>,
    /// What holds where there is no rule at all.
    none: Arc<EffectivePolicy>,
}

/// Which fields of a pool were written, so that defaults fill the others only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Said {
    connect_timeout: bool,
    h2_upgrade: bool,
}

impl Said {
    pub(super) fn of(m: &model::ConnectionPool) -> Self {
        Self {
            connect_timeout: m.connect_timeout.is_some(),
            h2_upgrade: m.h2_upgrade() != Wanted::Unspecified || m.use_client_protocol,
        }
    }
}

impl PolicyDefaults {
    pub(crate) fn compile(m: &model::MeshConfig) -> Self {
        let positive = |m: Option<&model::Millis>| millis(m).filter(|d| !d.is_zero());
        let mut out = Self {
            connect_timeout: positive(m.connect_timeout.as_ref()),
            keepalive: m.tcp_keepalive.as_ref().map(pool::TcpKeepalive::compile),
            h2_upgrade: m.h2_upgrade,
            locality: m.locality.as_ref().map(|l| Arc::new(LocalityPolicy::compile(l))),
            block: m.default_pool.as_ref().map(|p| (Pool::compile(p), Said::of(p))),
            outlier: m.default_outlier.as_ref().map(OutlierPolicy::compile),
            none: Arc::default(),
        };
        out.none = Arc::new(EffectivePolicy {
            balancing: out.balancing(None),
            pool: out.pool(None),
            outlier: out.outlier.clone(),
            ..EffectivePolicy::default()
        });
        out
    }

    /// What holds where there is no rule: one for all.
    pub(crate) fn none(&self) -> &Arc<EffectivePolicy> {
        &self.none
    }

    pub(super) fn balancing(&self, own: Option<Balancing>) -> Balancing {
        let mut out = own.unwrap_or_default();
        if out.locality.is_none() {
            out.locality.clone_from(&self.locality);
        }
        out
    }

    pub(super) fn pool(&self, own: Option<(Pool, Said)>) -> Pool {
        let (mut out, said) = own.or_else(|| self.block.clone()).unwrap_or_default();
        if !said.connect_timeout
            && let Some(timeout) = self.connect_timeout
        {
            out.connect_timeout = timeout;
        }
        if out.tcp_keepalive.is_none() {
            out.tcp_keepalive = self.keepalive;
        }
        if self.h2_upgrade && !said.h2_upgrade {
            out.h2_upgrade = H2Upgrade::Upgrade;
        }
        out
    }
}
