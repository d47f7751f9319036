//! Translation of small objects.
