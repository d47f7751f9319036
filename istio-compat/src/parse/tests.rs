//! What parsing accepts, refuses and lists.
