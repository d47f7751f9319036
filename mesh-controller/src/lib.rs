//! The control plane: watch, compile, distribute.
