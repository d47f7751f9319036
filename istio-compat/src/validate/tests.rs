//! Verdicts on small objects.
