//! A very small assembler, for guests of a few dozen instructions that need no image, and the arm64 `Image` header
//! around them (Documentation/arch/arm64/booting.rst).

use std::collections::BTreeMap;

/// Registers are numbers; this one reads as zero.
pub(crate) const XZR: u32 = 31;
/// Condition codes of `b.cond`.
pub(crate) const NE: u32 = 1;

/// A program being written. Labels may be used before they are placed.
#[derive(Default)]
pub(crate) struct Program {
    words: Vec<u32>,
    labels: BTreeMap<String, usize>,
    uses: Vec<(usize, String, Offset)>,
}

/// Where in an instruction the distance to a label goes.
#[derive(Clone, Copy)]
enum Offset {
    /// `b`, `bl`: 26 bits.
    Branch,
    /// `b.cond`, `cbz`, `cbnz`: 19 bits.
    Conditional,
    /// `adr`: 21 bits of bytes.
    Address,
}

impl Program {
    /// A program that begins with the `Image` header; what follows is its first instruction.
    pub(crate) fn new() -> Self {
        let mut program = Self::default();
        program.words.push(0x1400_0010); // b .+64
        program.words.resize(16, 0);
        program.words[14] = u32::from_le_bytes(*b"ARM\x64");
        program
    }

    /// The file.
    pub(crate) fn image(mut self) -> Vec<u8> {
        for (at, label, offset) in std::mem::take(&mut self.uses) {
            let to = *self.labels.get(&label).unwrap_or_else(|| panic!("no label {label}"));
            let distance = to as i32 - at as i32;
            self.words[at] |= match offset {
                Offset::Branch => distance as u32 & 0x3ff_ffff,
                Offset::Conditional => (distance as u32 & 0x7_ffff) << 5,
                Offset::Address => (distance as u32 & 0x7_ffff) << 5,
            };
        }
        self.words[4] = 4 * self.words.len() as u32; // image_size
        self.words[6] = 0b1010; // little-endian, 4 KiB pages, anywhere in RAM
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// How many instructions are before the first one of this kind, the header's 16 words apart.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn index_of(&self, word: u32) -> usize {
        self.words.iter().skip(16).position(|w| *w == word).expect("it is in the program")
    }

    /// The labels as a System.map, of a program at the start of RAM.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn system_map(&self) -> String {
        let line = |(name, at): (&String, &usize)| {
            format!("{:016x} t {}\n", 0x4000_0000 + 4 * at, name.replace(' ', "_"))
        };
        self.labels.iter().map(line).collect()
    }

    /// How many bytes there are so far.
    pub(crate) fn len(&self) -> usize {
        4 * self.words.len()
    }

    /// Any instruction.
    pub(crate) fn op(&mut self, word: u32) -> &mut Self {
        self.words.push(word);
        self
    }

    pub(crate) fn label(&mut self, name: &str) -> &mut Self {
        self.labels.insert(name.into(), self.words.len());
        self
    }

    /// Fills up with NOPs to a multiple of so many bytes.
    pub(crate) fn align(&mut self, bytes: usize) -> &mut Self {
        while !(4 * self.words.len()).is_multiple_of(bytes) {
            self.op(0xd503_201f);
        }
        self
    }

    /// Whether the next instruction is `bytes` behind a label.
    pub(crate) fn at(&self, label: &str, bytes: usize) -> bool {
        self.labels.get(label).is_some_and(|&start| self.words.len() == start + bytes / 4)
    }

    fn to(&mut self, word: u32, label: &str, offset: Offset) -> &mut Self {
        self.uses.push((self.words.len(), label.into(), offset));
        self.op(word)
    }

    pub(crate) fn b(&mut self, label: &str) -> &mut Self {
        self.to(0x1400_0000, label, Offset::Branch)
    }

    pub(crate) fn bl(&mut self, label: &str) -> &mut Self {
        self.to(0x9400_0000, label, Offset::Branch)
    }

    pub(crate) fn b_cond(&mut self, condition: u32, label: &str) -> &mut Self {
        self.to(0x5400_0000 | condition, label, Offset::Conditional)
    }

    pub(crate) fn cbz(&mut self, r: u32, label: &str) -> &mut Self {
        self.to(0xb400_0000 | r, label, Offset::Conditional)
    }

    pub(crate) fn cbnz(&mut self, r: u32, label: &str) -> &mut Self {
        self.to(0xb500_0000 | r, label, Offset::Conditional)
    }

    pub(crate) fn adr(&mut self, r: u32, label: &str) -> &mut Self {
        self.to(0x1000_0000 | r, label, Offset::Address)
    }

    pub(crate) fn ret(&mut self) -> &mut Self {
        self.op(0xd65f_03c0)
    }

    /// Any 64-bit constant.
    pub(crate) fn li(&mut self, r: u32, value: u64) -> &mut Self {
        self.op(0xd280_0000 | (value as u32 & 0xffff) << 5 | r);
        for part in 1..4 {
            let bits = (value >> (16 * part)) as u32 & 0xffff;
            if bits != 0 {
                self.op(0xf280_0000 | part << 21 | bits << 5 | r);
            }
        }
        self
    }

    pub(crate) fn mov(&mut self, d: u32, m: u32) -> &mut Self {
        self.op(0xaa00_03e0 | m << 16 | d)
    }

    pub(crate) fn add(&mut self, d: u32, n: u32, m: u32) -> &mut Self {
        self.op(0x8b00_0000 | m << 16 | n << 5 | d)
    }

    pub(crate) fn addi(&mut self, d: u32, n: u32, imm: u32) -> &mut Self {
        self.op(0x9100_0000 | imm << 10 | n << 5 | d)
    }

    pub(crate) fn subi(&mut self, d: u32, n: u32, imm: u32) -> &mut Self {
        self.op(0xd100_0000 | imm << 10 | n << 5 | d)
    }

    pub(crate) fn cmpi(&mut self, n: u32, imm: u32) -> &mut Self {
        self.op(0xf100_001f | imm << 10 | n << 5)
    }

    pub(crate) fn and(&mut self, d: u32, n: u32, m: u32) -> &mut Self {
        self.op(0x8a00_0000 | m << 16 | n << 5 | d)
    }

    /// `lsr d, n, #shift`.
    pub(crate) fn lsri(&mut self, d: u32, n: u32, shift: u32) -> &mut Self {
        self.op(0xd340_fc00 | shift << 16 | n << 5 | d)
    }

    /// `madd d, n, m, a`.
    pub(crate) fn madd(&mut self, d: u32, n: u32, m: u32, a: u32) -> &mut Self {
        self.op(0x9b00_0000 | m << 16 | a << 10 | n << 5 | d)
    }

    /// Loads `bytes` (1, 2, 4 or 8) at `[n]`, zero-extended.
    pub(crate) fn load(&mut self, bytes: u32, t: u32, n: u32) -> &mut Self {
        self.op(0x3940_0000 | bytes.trailing_zeros() << 30 | n << 5 | t)
    }

    /// Stores `bytes` (1, 2, 4 or 8) at `[n]`.
    pub(crate) fn store(&mut self, bytes: u32, t: u32, n: u32) -> &mut Self {
        self.op(0x3900_0000 | bytes.trailing_zeros() << 30 | n << 5 | t)
    }

    /// Stores the constant `value` at the constant address. Uses x16 and x17.
    pub(crate) fn poke(&mut self, bytes: u32, address: u64, value: u64) -> &mut Self {
        self.li(16, address).li(17, value).store(bytes, 17, 16)
    }

    pub(crate) fn hvc(&mut self) -> &mut Self {
        self.op(0xd400_0002)
    }

    pub(crate) fn wfi(&mut self) -> &mut Self {
        self.op(0xd503_207f)
    }

    /// PSCI call with constant arguments; the answer is in x0.
    pub(crate) fn psci(&mut self, function: u64, arguments: &[u64]) -> &mut Self {
        for (r, &value) in (1..).zip(arguments) {
            self.li(r, value);
        }
        self.li(0, function).hvc()
    }

    /// SYSTEM_OFF.
    pub(crate) fn power_off(&mut self) -> &mut Self {
        self.psci(0x8400_0008, &[])
    }

    /// Prints a text on the UART. Uses x16 and x17.
    pub(crate) fn print(&mut self, text: &str) -> &mut Self {
        self.li(16, super::UART);
        for byte in text.bytes() {
            self.li(17, byte.into()).store(1, 17, 16);
        }
        self
    }

    /// A subroutine `hex`: prints x0 as 16 hexadecimal digits and a newline. Uses x1 to x4.
    pub(crate) fn hex_routine(&mut self) -> &mut Self {
        self.label("hex").li(1, 64).li(4, super::UART);
        self.label("hex digit").subi(1, 1, 4).op(0x9ac1_2402); // lsr x2, x0, x1
        self.li(3, 15).and(2, 2, 3).cmpi(2, 10).addi(3, 2, u32::from(b'0'));
        // Letters from ten on: b.lo over the second addition.
        self.op(0x5400_0043).addi(3, 2, u32::from(b'a') - 10).store(1, 3, 4);
        self.cbnz(1, "hex digit").li(3, u64::from(b'\n')).store(1, 3, 4).ret()
    }
}
