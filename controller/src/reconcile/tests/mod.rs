//! The loop with real databases and imaginary agents.

mod converge;
mod imaginary;
mod queue;
mod silence;
