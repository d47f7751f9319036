//! Settings of the whole mesh as the model has them.

use mesh_api::model;

use super::{balancing, policy, retry, traffic};
use crate::types::{
    ConnectionPoolSettings, Duration, HttpRetry, LoadBalancerSettings, LocalityLbSetting, OutlierDetection,
    TcpKeepalive,
};

pub(crate) fn retry(r: &HttpRetry) -> model::RetryPolicy {
    retry::policy(r, 1)
}

pub(crate) fn length(d: &Duration) -> Option<model::Millis> {
    policy::length(Some(d))
}

pub(crate) fn keepalive(k: &TcpKeepalive) -> model::TcpKeepalive {
    traffic::keepalive(k)
}

pub(crate) fn locality(l: &LocalityLbSetting) -> model::LocalityPolicy {
    let settings = LoadBalancerSettings { locality_lb_setting: Some(l.clone()), ..Default::default() };
    balancing::locality(&settings).unwrap_or_default()
}

pub(crate) fn pool(p: &ConnectionPoolSettings) -> model::ConnectionPool {
    traffic::connection_pool(p)
}

pub(crate) fn outlier(o: &OutlierDetection) -> model::OutlierDetection {
    traffic::outlier(o)
}
