//! Applied objects to compiled snapshots and deltas.
