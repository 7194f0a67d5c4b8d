//! Makes a failing schedule as short as it can be: fewer holds, and shorter ones.

use crate::schedule::Hold;

/// The shortest hold that is tried, in nanoseconds.
const SHORTEST: u64 = 16;
/// Of how many holds pairs are tried.
const PAIRED: usize = 16;

/// The fewest and shortest of `holds` that still fail. `fails` tells whether a schedule fails in the same way; what it
/// answers for `holds` themselves is taken to be yes.
pub fn shrink(holds: &[Hold], mut fails: impl FnMut(&[Hold]) -> bool) -> Vec<Hold> {
    let mut best = fewer(holds.to_vec(), &mut fails);
    best = longer(&best, &mut fails).unwrap_or(best);
    for index in 0..best.len() {
        shorter(&mut best, index, &mut fails);
    }
    best
}

/// Delta debugging (Zeller and Hildebrandt, 2002): leaves out ever smaller parts.
fn fewer(mut best: Vec<Hold>, fails: &mut impl FnMut(&[Hold]) -> bool) -> Vec<Hold> {
    let mut part = best.len();
    while part > 0 && !best.is_empty() {
        let mut at = 0;
        while at < best.len() {
            let mut without = best.clone();
            without.drain(at..(at + part).min(best.len()));
            if fails(&without) {
                best = without;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    best
}

/// One of the holds instead of all, or two, each as long as all of them together: of holds that others need in turn, as an order
/// by priorities leaves them, none can be left out, and yet one place may be all that matters.
fn longer(holds: &[Hold], fails: &mut impl FnMut(&[Hold]) -> bool) -> Option<Vec<Hold>> {
    let ns = holds.iter().fold(0, |sum: u64, hold| sum.saturating_add(hold.ns));
    let long: Vec<Hold> = holds.iter().map(|&hold| Hold { ns, ..hold }).collect();
    let one = long.iter().map(|&hold| vec![hold]).filter(|_| long.len() > 1);
    let few = &long[..long.len().min(PAIRED)];
    let pairs = few
        .iter()
        .enumerate()
        .flat_map(|(n, &first)| few[n + 1..].iter().map(move |&hold| vec![first, hold]));
    one.chain(pairs.filter(|_| long.len() > 2)).find(|some| fails(some))
}

/// Halves one hold's time as long as it fails.
fn shorter(best: &mut [Hold], index: usize, fails: &mut impl FnMut(&[Hold]) -> bool) {
    while best[index].ns / 2 >= SHORTEST {
        let long = best[index].ns;
        best[index].ns = long / 2;
        if !fails(best) {
            best[index].ns = long;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::Actor;

    #[test]
    fn what_does_not_matter_goes() {
        let holds: Vec<Hold> = (0..20).map(|at| Hold { who: Actor::Cpu(0), at, ns: 1000 }).collect();
        let mut tries = 0;
        let small = shrink(&holds, |holds| {
            tries += 1;
            [3, 11].iter().all(|at| holds.iter().any(|h| h.at == *at && h.ns >= 100))
        });
        assert_eq!(small.iter().map(|h| (h.at, h.ns)).collect::<Vec<_>>(), [(3, 125), (11, 125)]);
        assert!(tries < 62, "{tries}");
    }

    #[test]
    fn two_that_make_one_long_one_become_one() {
        let hold = |at, ns| Hold { who: Actor::Cpu(0), at, ns };
        let small = shrink(&[hold(4, 60), hold(5, 60)], |holds| {
            holds.iter().map(|hold| hold.ns).sum::<u64>() >= 100
                && holds.iter().all(|hold| hold.at < 5 || holds.len() > 1)
        });
        assert_eq!(small, [hold(4, 120)]);
    }

    #[test]
    fn a_chain_in_which_each_needs_the_one_before_becomes_two() {
        let hold = |at, ns| Hold { who: Actor::Cpu(0), at, ns };
        let chain: Vec<Hold> = (0..12).map(|at| hold(at, 10)).collect();
        let small = shrink(&chain, |holds| {
            holds == chain || holds.len() == 2 && holds[0].at == 3 && holds[1].at == 8 && holds[1].ns >= 30
        });
        assert_eq!(small, [hold(3, 30), hold(8, 30)]);
    }

    #[test]
    fn a_failure_of_the_default_order_needs_no_hold() {
        assert_eq!(shrink(&[Hold { who: Actor::Its, at: 0, ns: 5 }], |_| true), []);
    }
}
