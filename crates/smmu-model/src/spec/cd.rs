//! Context descriptors (section 5.4).
