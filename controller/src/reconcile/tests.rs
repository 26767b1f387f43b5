//! The loop with real databases and imaginary agents.
