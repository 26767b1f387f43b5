//! Golden bytes, round trips and size limits of the protocol.
