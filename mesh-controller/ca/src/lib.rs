//! Certificate signing requests, signing, join tokens.
