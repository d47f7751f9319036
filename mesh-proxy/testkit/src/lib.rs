//! Closed test networks, the echo application, a real control plane.
pub mod kube;
