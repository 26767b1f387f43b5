//! SQL of the tables that this room owns: nodes, their cards, certificates and join tokens.

pub mod cards;
pub mod join;
pub mod live;
pub mod nodes;
