//! The room with a real database.
