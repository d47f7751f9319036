//! Sockets, original destination, detection, TLS and copy.
