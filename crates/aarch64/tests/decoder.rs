//! The decoder against Arm's machine-readable specification: every encoding of the advertised features decodes to the
//! row of its name, and everything else is UNDEFINED.

mod encodings;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use aarch64::{Features, decode};
use encodings::{ENCODINGS, Encoding};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const BASE: Features = Features { crc32: true, lse: false, pan: false };
const ALL: Features = Features { crc32: true, lse: true, pan: true };

/// Groups that later extensions added as a whole.
const LATER_GROUPS: &[&str] = &[
    "addsub_immtags",
    "addsub_pt",
    "asimdmiscfp16",
    "asimdsame2",
    "asimdsamefp16",
    "asisdmiscfp16",
    "asisdsame2",
    "asisdsamefp16",
    "compbranch_imm",
    "compbranch_regs",
    "compbranch_regs2",
    "compfault_imm",
    "compfault_regs",
    "comswap_unpriv",
    "comswappr_unpriv",
    "crypto3_imm2",
    "crypto3_imm6",
    "crypto4",
    "cryptoaes",
    "cryptosha2",
    "cryptosha3",
    "cryptosha512_2",
    "cryptosha512_3",
    "dp_1src_imm",
    "extendedhints",
    "ldapstl_simd",
    "ldapstl_unscaled",
    "ldapstl_writeback",
    "ldiappstilp",
    "ldst_gcs",
    "ldst_pac",
    "ldstexclr_unpriv",
    "ldsttags",
    "memcms",
    "memop_128",
    "memop_unpriv",
    "memset_go",
    "minmax_imm",
    "miscbranch",
    "perm_undef",
    "rcwcomswap",
    "rcwcomswappr",
    "rmif",
    "setf",
    "syspairinstrs",
    "systeminstrswithreg",
    "systemmovepr",
    "tchange_imm",
    "tchange_reg",
    "testfault",
];

/// Whether an encoding is of Armv8.0-A with FP, Advanced SIMD, CRC32 and, when asked for, LSE.
fn advertised(e: &Encoding, features: &Features) -> bool {
    let (name, group) = (e.name, e.group);
    let mnemonic = name.split('_').next().unwrap_or(name);
    if LATER_GROUPS.contains(&group) {
        return false;
    }
    match group {
        "comswap" | "comswappr" => features.lse,
        // FEAT_LSE; the rest is FEAT_LRCPC, FEAT_LS64, FEAT_LSFE, FEAT_THE.
        "memop" => features.lse && lse(mnemonic),
        // FEAT_LOR.
        "ldstord" => !mnemonic.starts_with("LDLAR") && !mnemonic.starts_with("STLLR"),
        "ldst_regoff" => mnemonic != "RPRFM",
        // FEAT_MTE, FEAT_LSUI.
        "ldstpair_off" | "ldstpair_post" | "ldstpair_pre" | "ldstnapair_offs" => {
            !["STGP", "STTP", "LDTP", "STTNP", "LDTNP"].contains(&mnemonic)
        }
        // FEAT_LRCPC3.
        "asisdlso" | "asisdlsop" => !["LDAP1", "STL1"].contains(&mnemonic),
        "barriers" => ["CLREX", "DSB", "DMB", "ISB"].contains(&mnemonic) && name != "DSB_BOn_barriers",
        "branch_reg" => ["BR", "BLR", "RET", "ERET", "DRPS"].contains(&mnemonic),
        "condbranch" => mnemonic == "B",
        "exception" => !["FLT", "TENTER"].contains(&mnemonic),
        "hints" => ["NOP", "YIELD", "WFE", "WFI", "SEV", "SEVL", "HINT"].contains(&mnemonic),
        "pstate" => mnemonic == "MSR",
        // FEAT_CSSC, FEAT_PAuth.
        "dp_1src" => ["RBIT", "REV16", "REV", "REV32", "CLZ", "CLS"].contains(&mnemonic),
        // FEAT_CSSC, FEAT_MTE, FEAT_PAuth.
        "dp_2src" => {
            !["SMAX", "UMAX", "SMIN", "UMIN", "SUBP", "SUBPS", "IRG", "GMI", "PACGA"].contains(&mnemonic)
        }
        "dp_3src" => !["MADDPT", "MSUBPT"].contains(&mnemonic),
        _ => floating(e, mnemonic),
    }
}

fn lse(mnemonic: &str) -> bool {
    let base = mnemonic.trim_end_matches(['B', 'H']);
    ["LDADD", "LDCLR", "LDEOR", "LDSET", "LDSMAX", "LDSMIN", "LDUMAX", "LDUMIN", "SWP"]
        .iter()
        .any(|op| base.strip_prefix(op).is_some_and(|order| ["", "A", "L", "AL"].contains(&order)))
}

/// Of the FP and Advanced SIMD groups, what is not FEAT_FP16, FEAT_FHM, FEAT_DotProd, FEAT_RDM, FEAT_FCMA, FEAT_BF16,
/// FEAT_I8MM, FEAT_FP8, FEAT_FRINTTS, FEAT_JSCVT, FEAT_FAMINMAX, FEAT_LUT, FEAT_AES and so on.
fn floating(e: &Encoding, mnemonic: &str) -> bool {
    let (name, group) = (e.name, e.group);
    const LATER: &[&str] = &[
        "SDOT",
        "UDOT",
        "USDOT",
        "SUDOT",
        "FDOT",
        "BFDOT",
        "BFMLAL",
        "FMLAL",
        "FMLSL",
        "FMLAL2",
        "FMLSL2",
        "FMLALB",
        "FMLALT",
        "FMLALLBB",
        "FMLALLBT",
        "FMLALLTB",
        "FMLALLTT",
        "SQRDMLAH",
        "SQRDMLSH",
        "FCMLA",
        "FCADD",
        "BFCVT",
        "BFCVTN",
        "FRINT32Z",
        "FRINT32X",
        "FRINT64Z",
        "FRINT64X",
        "F1CVTL",
        "F2CVTL",
        "BF1CVTL",
        "BF2CVTL",
        "FJCVTZS",
        "FAMAX",
        "FAMIN",
        "FSCALE",
        "LUTI2",
        "LUTI4",
        "FCMTL",
        "FCMTLMG",
        "FMAXINM",
        "FMININM",
        "FMAXMG",
        "FMINMG",
        "FMAXMGINM",
        "FMINMGINM",
    ];
    let half = match group {
        // "FMOV_H_floatimm", "FMUL_H_floatdp2", "FCMP_H_floatcmp", "FCVTNS_32H_float2int": all but FCVT's are FEAT_FP16.
        "floatimm" | "floatdp2" | "floatdp3" | "floatcmp" | "floatccmp" | "floatsel" => {
            name.split('_').nth(1).is_some_and(|size| size.starts_with('H'))
        }
        "floatdp1" => mnemonic != "FCVT" && name.split('_').nth(1) == Some("H"),
        "float2fix" | "float2int" => name.split('_').nth(1).is_some_and(|size| size.contains('H')),
        // FMAXNMV and so on of halves, FADDP and so on.
        "asimdall" | "asisdpair" => name.ends_with("_H"),
        "asimdimm" => name == "FMOV_asimdimm_H_h",
        "asimdelem" | "asisdelem" => name.split('_').nth(2).is_some_and(|form| form.starts_with("RH")),
        _ => false,
    };
    // FEAT_FPRCVT: conversions between SIMD&FP registers of different widths.
    let fprcvt = group == "float2int" && name.contains("_sisd_");
    !LATER.contains(&mnemonic) && !half && !fprcvt
}

/// A word of an encoding, with the rest random.
fn fill(e: &Encoding, rng: &mut impl Rng) -> u32 {
    rng.random::<u32>() & !e.mask | e.value
}

fn matches(e: &Encoding, word: u32) -> bool {
    // A bit that only should have a value may have the other.
    (word ^ e.value) & e.mask & !e.should_be == 0
}

#[test]
fn every_advertised_encoding_has_its_row() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    for features in [BASE, ALL] {
        let mut wrong = Vec::new();
        for e in ENCODINGS {
            let names: Vec<_> = (0..400).map(|_| decode::name(fill(e, &mut rng), &features)).collect();
            let own = names.iter().flatten().filter(|name| **name == e.name).count();
            if advertised(e, &features) != (own > 0) {
                let others: std::collections::BTreeSet<_> = names.iter().flatten().collect();
                wrong.push(format!("{} {} {others:?}", e.group, e.name));
            }
        }
        assert!(wrong.is_empty(), "{features:?}: {} wrong\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn every_decoded_word_is_of_its_encoding() {
    let by_name: BTreeMap<_, _> = ENCODINGS.iter().map(|e| (e.name, e)).collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let check = |word: u32| {
        let Some(name) = decode::name(word, &ALL) else { return };
        let e = by_name.get(name).unwrap_or_else(|| panic!("{name} is not in the specification"));
        assert!(matches(e, word), "{word:#010x} is not {name}");
        assert!(advertised(e, &ALL), "{name} is not advertised");
        // Another encoding may share the word only when ours is more special, or the other is not for us.
        for other in ENCODINGS.iter().filter(|o| o.name != name && (word ^ o.value) & o.mask == 0) {
            let special = other.mask.count_ones() < e.mask.count_ones();
            assert!(special || !advertised(other, &ALL), "{word:#010x} is {} rather than {name}", other.name);
        }
    };
    for _ in 0..200_000 {
        check(rng.random());
    }
    for e in ENCODINGS {
        for _ in 0..100 {
            check(fill(e, &mut rng));
        }
    }
}

/// Which of the words are allocated, by LLVM's disassembler.
fn by_llvm(words: &[u32]) -> Option<Vec<bool>> {
    let mut child = Command::new("llvm-mc")
        .args(["--disassemble", "--triple=aarch64", "--mattr=+v8a,+fp-armv8,+neon,+crc,+lse,+pan"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take()?;
    let text: String = words
        .iter()
        .map(|w| {
            let b = w.to_le_bytes();
            format!("{:#04x} {:#04x} {:#04x} {:#04x}\n", b[0], b[1], b[2], b[3])
        })
        .collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().ok()?;
    let _ = writer.join();
    let mut allocated = vec![true; words.len()];
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        // <stdin>:17:1: warning: invalid instruction encoding
        if line.contains("invalid instruction encoding") {
            let at: usize = line.split(':').nth(1)?.parse().ok()?;
            allocated[at - 1] = false;
        }
    }
    Some(allocated)
}

#[test]
fn allocated_is_what_llvm_says() {
    if Command::new("llvm-mc").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "llvm-mc is needed");
        println!("SKIPPED: llvm-mc is not installed");
        return;
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
    let mut words: Vec<u32> = (0..50_000).map(|_| rng.random()).collect();
    for e in ENCODINGS {
        words.extend((0..40).map(|_| fill(e, &mut rng)));
    }
    let allocated = by_llvm(&words).expect("llvm-mc runs");
    let mut wrong = BTreeMap::<String, (u32, bool)>::new();
    for (&word, &theirs) in words.iter().zip(&allocated) {
        let ours = decode::name(word, &ALL);
        if ours.is_some() != theirs && !known(word) {
            let group =
                ours.or_else(|| ENCODINGS.iter().find(|e| (word ^ e.value) & e.mask == 0).map(|e| e.name));
            wrong.insert(format!("{:?}", group), (word, theirs));
        }
    }
    let list: Vec<_> =
        wrong.iter().map(|(name, (word, theirs))| format!("{name} {word:#010x} LLVM {theirs}")).collect();
    assert!(list.is_empty(), "{} differ:\n{}", list.len(), list.join("\n"));
}

/// Where LLVM is known to be of another opinion than the manual.
fn known(word: u32) -> bool {
    // UDF is permanently UNDEFINED, and an instruction to LLVM.
    word >> 16 == 0
        // Of op0 = 0 in the system space, LLVM accepts what nobody allocated, and later extensions.
        || word & 0xffd8_0000 == 0xd500_0000
}
