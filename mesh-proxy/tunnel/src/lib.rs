//! libp2p behind open and accept, with bounds.
