//! SIMD and FP instructions.
