//! Stream table entries (section 5.2).
