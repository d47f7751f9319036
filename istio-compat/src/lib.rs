//! Istio resources as users write them, translated to the mesh model.
