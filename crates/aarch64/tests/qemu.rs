//! Random instruction sequences, on both engines and on `qemu-aarch64`: registers, flags and memory compared.
//!
//! `QEMU_SEQUENCES` says how many sequences to try (256; ten thousand with `SMMULAB_LONG=1`), `QEMU_SEED` which.

mod bare;
mod encodings;
mod oracle;

use aarch64::{EngineKind, decode};
use encodings::ENCODINGS;
use oracle::{
    DATA, FEATURES, LENGTH, MIDDLE, SEQUENCES, STATE, STATES, bits, constant, data, exclusive, here,
    instance, join, on_qemu, suitable,
};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

fn describe(state: &[u8], n: usize) -> String {
    let name = match n {
        0..29 => format!("X{n}"),
        29 => "NZCV".into(),
        30 => "FPSR".into(),
        31 => "FPCR".into(),
        _ => format!("V{}.D[{}]", (n - 32) / 2, n % 2),
    };
    let value = u64::from_le_bytes(state[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
    format!("{name}={value:#x}")
}

#[test]
fn random_sequences_agree_with_qemu() {
    if !oracle::available() {
        return;
    }
    let number = |name, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let long = number("SMMULAB_LONG", 0) == 1;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(number("QEMU_SEED", 1));
    let only = std::env::var("QEMU_ONLY").unwrap_or_default();
    let candidates: Vec<_> =
        ENCODINGS.iter().filter(|e| e.name.contains(&only)).filter_map(|e| Some((e, suitable(e)?))).collect();
    let mut tried = std::collections::BTreeSet::new();
    let mut failed = std::collections::BTreeMap::<&str, String>::new();
    for _ in 0..number("QEMU_SEQUENCES", if long { 10_000 } else { 256 }).div_ceil(SEQUENCES) {
        let sequences: Vec<Vec<u32>> = (0..SEQUENCES)
            .map(|_| {
                let mut instances = Vec::new();
                for _ in 0..number("QEMU_LENGTH", LENGTH as u64) {
                    let found = (0..10_000).find_map(|_| {
                        let (e, memory) = candidates[rng.random_range(0..candidates.len())];
                        instance(e, memory, &mut rng)
                    });
                    instances.extend(found);
                }
                if only.is_empty() {
                    instances.push(exclusive(&mut rng));
                }
                join(&instances, &mut rng)
            })
            .collect();
        tried.extend(sequences.iter().flatten().filter_map(|word| decode::name(*word, &FEATURES)));
        let data = data(&mut rng);
        let expected = on_qemu(&sequences, &data);
        for engine in EngineKind::ALL {
            let got = here(engine, &sequences, &data);
            if got == expected {
                continue;
            }
            // Which instruction it was: each alone, from the same state.
            let differs = |i: &usize| {
                let at = (STATES - DATA) as usize + (2 * i + 1) * STATE as usize;
                got[at..at + STATE as usize] != expected[at..at + STATE as usize]
            };
            let mut wrong: Vec<usize> = (0..sequences.len()).filter(differs).collect();
            if wrong.is_empty() {
                // Only memory: it could be any of them.
                wrong = (0..sequences.len()).collect();
            }
            for word in wrong.iter().flat_map(|i| &sequences[*i]).copied() {
                let Some(name) = decode::name(word, &FEATURES) else { continue };
                if failed.contains_key(name) || name.starts_with("MOV") {
                    continue;
                }
                let mut alone = vec![Vec::new(); SEQUENCES as usize];
                for (i, one) in alone.iter_mut().enumerate() {
                    if name.contains("ld")
                        || name.contains("memop")
                        || name.contains("swap")
                        || name.contains("asisdls")
                    {
                        constant(one, bits(word, 9, 5), MIDDLE + 128 * i as u64);
                        if name.contains("regoff") {
                            constant(one, bits(word, 20, 16), 8);
                        }
                    }
                    one.push(word);
                }
                let (want, got) = (on_qemu(&alone, &data), here(engine, &alone, &data));
                if want != got {
                    let mut text = format!("{name} {word:#010x}: ");
                    for i in 0..SEQUENCES {
                        let at = (STATES - DATA + (2 * i + 1) * STATE) as usize;
                        let (w, g, before) = (&want[at..], &got[at..], &data[at - STATE as usize..]);
                        if w[..STATE as usize] != g[..STATE as usize] {
                            for n in (0..96).filter(|n| w[n * 8..n * 8 + 8] != g[n * 8..n * 8 + 8]) {
                                text += &format!(
                                    "\n  {} (was {}), QEMU {}",
                                    describe(g, n),
                                    describe(before, n),
                                    describe(w, n)
                                );
                            }
                            for n in [9, 5, 20, 16, 14, 10, 4, 0]
                                .chunks(2)
                                .map(|c| bits(word, c[0].max(c[1]), c[0].min(c[1])))
                            {
                                if n < 29 {
                                    text += &format!("  {}", describe(before, n as usize));
                                }
                                text += &format!(
                                    " {} {}",
                                    describe(before, 32 + 2 * n as usize),
                                    describe(before, 33 + 2 * n as usize)
                                );
                            }
                            break;
                        }
                    }
                    failed.insert(name, text);
                }
            }
            if failed.is_empty() {
                failed.insert(
                    "together",
                    format!("{engine:?}: a sequence differs, none of its instructions alone"),
                );
            }
        }
    }
    println!("{} encodings tried", tried.len());
    assert!(
        failed.is_empty(),
        "{} differ:\n{}",
        failed.len(),
        failed.values().cloned().collect::<Vec<_>>().join("\n")
    );
}
