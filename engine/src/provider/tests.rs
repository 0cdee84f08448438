//! The server in virtual time.
