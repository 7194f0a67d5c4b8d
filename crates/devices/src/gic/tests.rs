//! The GIC as a guest programs it.
