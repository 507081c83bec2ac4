//! The cells of the API server. No status can be written then: log and metrics say what is wrong.
pub struct Cell { pub trouble: super::Trouble }
pub const CELLS: &[Cell] = &[];
