//! The engine's random numbers: drand48's generator, two steps a number.

const MULTIPLIER: u64 = 0x5_deec_e66d;
const INCREMENT: u64 = 0xb;
const MASK: u64 = (1 << 48) - 1;

/// The state that a seed gives.
pub(super) fn seeded(seed: u32) -> u64 {
    u64::from(seed) << 16 | 0x330e
}

/// The next number.
pub(super) fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT) & MASK;
    let low = (*state >> 17) as u32 & 0x7fff_ffff;
    *state = state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT) & MASK;
    low | *state as u32 & 0x8000_0000
}

/// The state after `n` more numbers, without going through them.
pub(super) fn skip(state: u64, n: u64) -> u64 {
    // x -> a x + c, applied 2n times, by squaring.
    let (mut a, mut c) = (1u64, 0u64);
    let (mut step_a, mut step_c) = (MULTIPLIER, INCREMENT);
    let mut left = u128::from(n) * 2;
    while left > 0 {
        if left & 1 != 0 {
            a = a.wrapping_mul(step_a);
            c = c.wrapping_mul(step_a).wrapping_add(step_c);
        }
        step_c = step_a.wrapping_add(1).wrapping_mul(step_c);
        step_a = step_a.wrapping_mul(step_a);
        left >>= 1;
    }
    state.wrapping_mul(a).wrapping_add(c) & MASK
}

/// The generator's state for data that begins at `address`.
pub(super) fn data_state(seed: u32, address: u64) -> u64 {
    seeded(seed ^ (address >> 32) as u32 ^ address as u32)
}

/// Fills `data`, which lies at `address` in a range that began at `begin` and is seeded anew at each 4 KiB boundary.
/// `data` crosses none.
pub(super) fn fill(seed: u32, begin: u64, address: u64, data: &mut [u8]) {
    let start = (address & !0xfff).max(begin);
    let mut state = skip(data_state(seed, start), address.saturating_sub(start));
    data.iter_mut().for_each(|byte| *byte = next(&mut state) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library's lrand48 after srand48(1) begins with these.
    #[test]
    fn the_low_bits_are_those_of_lrand48() {
        let mut state = seeded(1);
        let drawn = [next(&mut state), next(&mut state)].map(|n| n & 0x7fff_ffff);
        assert_eq!(drawn, [89_400_484, 1_792_756_325]);
    }

    #[test]
    fn skipping_is_going_through_them() {
        let start = seeded(0x1234_5678);
        let mut state = start;
        for n in 0..600 {
            assert_eq!(skip(start, n), state);
            next(&mut state);
        }
        assert!(skip(start, u64::MAX) <= MASK);
    }

    #[test]
    fn data_does_not_depend_on_the_pieces_it_comes_in() {
        let (begin, mut whole) = (0x1_0000_0ff3, vec![0; 13]);
        fill(7, begin, begin, &mut whole);
        for split in 1..12 {
            let mut part = vec![0; 13 - split];
            fill(7, begin, begin + split as u64, &mut part);
            assert_eq!(part, whole[split..]);
        }
        let mut page = vec![0; 4];
        fill(7, begin, 0x1_0000_1000, &mut page);
        let mut state = seeded(7 ^ 1 ^ 0x1000);
        assert_eq!(page, [(); 4].map(|()| next(&mut state) as u8));
    }
}
