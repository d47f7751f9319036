//! What every program needs: tasks, drain, readiness, config, admin, logs.
