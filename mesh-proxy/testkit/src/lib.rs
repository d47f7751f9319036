//! Closed test networks, the echo application, a real control plane.
pub mod bins;
pub mod cluster;
pub mod demo;
pub mod echo;
pub mod fuzz;
pub mod image;
pub mod kube;
pub mod lab;
pub mod matrix;
pub mod mesh;
pub mod ports;
