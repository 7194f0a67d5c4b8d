//! How many cases a property test runs.

/// `SMMULAB_ORACLE_CASES`, for a long run; else what suits the fast suite.
pub(crate) fn cases(fast: u32) -> u32 {
    match std::env::var("SMMULAB_ORACLE_CASES") {
        Ok(text) => text.parse().expect("SMMULAB_ORACLE_CASES is a number"),
        Err(_) => fast,
    }
}
